"""Writes `docs/man/*.1.md` from the commands themselves; with `--check` it compares only."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from mica.cli.docker2cvmfs import app as docker2cvmfs
from mica.cli.main import app

HERE = Path(__file__).parent
EXIT_CODES = """\
| code | meaning |
|---|---|
| 0 | done |
| 1 | failed: a wrong name, a missing file, a full disk, a refused input |
| 2 | the command line is wrong |
| 3 | integrity: bytes are not what a signature, digest or size says; they were not used |
| 4 | temporary: may succeed later without any change |
"""

RUN_CODES = """\
Otherwise the exit code is the program's: 128+n if a signal ended it, 127 if there is no such program, 126 if it cannot
be executed, 125 if the container could not be made."""


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All commands with their full names, groups left out."""
    if not hasattr(command, "list_commands"):
        yield name, command
        return
    context = typer.Context(command, info_name=name)
    for child in command.list_commands(context):
        yield from commands(command.get_command(context, child), f"{name} {child}")


def page(name: str, command: Any) -> str:
    """One manual page."""
    context = typer.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    parts = [f"# {name}", "", _text(command.help), "", "```", usage, "```", ""]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]
    if arguments:
        parts += ["## Arguments", "", "| argument | meaning |", "|---|---|"]
        parts += [f"| `{p.metavar or p.name}` | {_text(p.help)} |" for p in arguments] + [""]
    parts += ["## Options", "", "| option | meaning |", "|---|---|"]
    parts += [f"| {_names(p)}{_values(p)} | {_text(p.help)}{_default(p)}{_variable(p)} |" for p in options]
    parts += ["| `--help` | Show the command's help. |", ""]
    parts += ["## Example", "", "    " + (command.epilog or "").removeprefix("Example: "), ""]
    parts += ["## Exit codes", "", EXIT_CODES]
    if name == "mica run":
        parts += [RUN_CODES, ""]
    return "\n".join(parts)


def _names(parameter: Any) -> str:
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _values(parameter: Any) -> str:
    """The values of an option that has a few."""
    return f" `{parameter.metavar}`".replace("|", "\\|") if parameter.metavar else ""


def _default(parameter: Any) -> str:
    default = parameter.default
    if isinstance(shown := getattr(parameter, "show_default", None), str):
        default = shown
    elif default in (None, False, "", ()) or callable(default) or parameter.required:
        return ""
    return f" Default: `{default}`."


def _variable(parameter: Any) -> str:
    name = getattr(parameter, "envvar", None)
    return f" Or in the environment: `{name}`." if name else ""


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def main() -> int:
    """Write or compare the pages; 1 if a page is not as the command says."""
    trees = (("mica", app), ("docker2cvmfs", docker2cvmfs))
    pages = {
        f"{name.replace(' ', '-')}.1.md": page(name, command)
        for program, tree in trees
        for name, command in commands(typer.main.get_command(tree), program)
    }
    stale = {path.name for path in HERE.glob("*.1.md")} - pages.keys()
    different = {
        name for name, text in pages.items() if not (HERE / name).exists() or (HERE / name).read_text() != text
    }
    if "--check" in sys.argv:
        for name in sorted(stale | different):
            print(f"docs/man/{name} is not as the command says: run docs/man/generate.py")
        return 1 if stale or different else 0
    for name in stale:
        (HERE / name).unlink()
    for name, text in pages.items():
        (HERE / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
