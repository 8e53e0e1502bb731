"""`mica status`: what mica runs on this host. Each kind of thing is a section, which a provider makes.

It answers at once, whatever is mounted. So files are counted only on request. Each thing is shown in a few lines,
because a table needs a library and is too wide for a terminal.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mica.cli.node import NODE_DIRECTORY, NodeOption
from mica.cli.options import JsonOption, StateOption, mount_path
from mica.cli.printing import print_facts, print_json
from mica.cli.statussections import Provider
from mica.errors import UserError


def providers(node: Path, state: Path, *, count: bool) -> tuple[Provider, ...]:
    """In the order in which they are shown; with `count` they say how much is local."""
    from mica.cli.mountstatus import repository_mounts
    from mica.cli.nodestatus import node_sections
    from mica.cli.runstatus import run_sections

    return (
        partial(node_sections, node, count=count),
        partial(run_sections, state),
        partial(repository_mounts, count=count),
    )


def status(
    state: StateOption,
    directory: Annotated[
        Path | None,
        typer.Argument(parser=mount_path, help="A mounted repository, or a path in it; default: all of this host."),
    ] = None,
    node: NodeOption = NODE_DIRECTORY,
    local: Annotated[
        bool, typer.Option("--local", help="Count how much is local; this looks at each file of all catalogs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what mica runs on this host: nodes and the images they serve, containers, mounted repositories, and what
    they fetched. If a process is gone and left something behind, name the command that cleans up.

    --local also shows how much of them is in the cache and can be read without a server. This fetches nothing: catalogs
    that are not in the cache are skipped and counted. "Passthrough" shows from which size on the kernel reads files
    itself, or why it does not.
    """
    sections = [section for provider in providers(node, state, count=local) for section in provider(directory)]
    if directory is not None and not any(section.things for section in sections):
        raise UserError(f"{directory} is in no mounted repository.")
    if as_json:
        print_json({section.key: list(section.facts) for section in sections})
        return
    things = [thing for section in sections for thing in section.things]
    for number, thing in enumerate(things):
        sys.stdout.write(f"{'' if number == 0 else chr(10)}{thing.title}\n")
        print_facts({name: text for name, text in thing.lines.items() if text != ""}, indent=2)
    if not things:
        sys.stdout.write("Nothing is mounted, and no container runs.\n")
