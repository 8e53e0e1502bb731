"""Groups of commands.

Unknown names: a command is suggested only if its name is really alike. For a word of another container program the
command of mica is named.

A program with many commands lists where they are (`Place`), and imports only the one that is called.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import typer.main
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
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(describe_unknown(name, known))
        return super().resolve_command(ctx, args)


@dataclass(frozen=True)
class Place:
    """Where a command is: a function, or the `typer.Typer` of a group, in a module of `mica.cli`."""

    module: str
    attribute: str
    example: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of Click's context, for functions."""

    def load(self, name: str) -> Any:
        """Import the module and make the command with this name."""
        found = getattr(importlib.import_module(f"mica.cli.{self.module}"), self.attribute)
        holder = typer.Typer(callback=_nothing, add_completion=False, rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=name)
        else:
            epilog = f"Example: {self.example}"
            holder.command(name, epilog=epilog, context_settings=dict(self.settings))(found)
        return typer.main.get_group(holder).commands[name]


def _nothing() -> None:
    """With a callback of its own, typer makes a group even of one command."""


class PlacedCommands(Commands):
    """A group whose commands are imported when they are called, or shown by `--help`."""

    places: ClassVar[Mapping[str, Place]] = {}

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is Click's
        return list(self.places)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the signature is Click's
        if cmd_name not in self.commands and cmd_name in self.places:
            self.commands[cmd_name] = self.places[cmd_name].load(cmd_name)
        return self.commands.get(cmd_name)


def describe_unknown(name: str, known: Sequence[str]) -> str:
    """The sentence for a group with these commands."""
    from difflib import get_close_matches

    meant = OTHER_WORDS.get(name, "")
    if meant.partition(" ")[0] not in known:
        meant = next(iter(get_close_matches(name, known, n=1, cutoff=_LIKENESS)), "")
    return f"No such command {name!r}." + (f" Did you mean {meant!r}?" if meant else "")
