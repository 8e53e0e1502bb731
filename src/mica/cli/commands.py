"""The answer of a group of commands to an unknown name. A command is suggested only if its name is really alike. For a
word of another container program the command of mica is named.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from typer.core import TyperGroup

_LIKENESS: Final = 0.75
"""Of difflib: 'psuh' is like 'push' (0.75), 'ps' is not (0.67)."""

OTHER_WORDS: Final[Mapping[str, str]] = {
    "exec": "run",
    "import": "convert",
    "info": "doctor",
    "ls": "repo ls",
    "ps": "status",
    "prune": "cache prune",
    "pull": "convert",
    "serve": "repo serve",
    "start": "run",
    "unmount": "umount",
}
"""A command of other programs -> the command of mica for the same."""


class Commands(TyperGroup):
    """A group of commands with our own sentence for an unknown name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(describe_unknown(name, list(self.commands)))
        return super().resolve_command(ctx, args)


def describe_unknown(name: str, known: Sequence[str]) -> str:
    """The sentence for a group with these commands."""
    meant = OTHER_WORDS.get(name, "")
    if meant.partition(" ")[0] not in known:
        meant = next(iter(get_close_matches(name, known, n=1, cutoff=_LIKENESS)), "")
    return f"No such command {name!r}." + (f" Did you mean {meant!r}?" if meant else "")
