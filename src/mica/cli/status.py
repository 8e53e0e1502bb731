"""`mica status`: what of mica is running on this host. Each kind of it is a section, made by a provider."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from mica.cli.node import NODE_DIRECTORY, NodeOption
from mica.cli.options import JsonOption, mount_path
from mica.cli.output import print_json, print_table
from mica.errors import UserError


class Section(NamedTuple):
    """One table, and the same for programs: `facts` go below `key` in the JSON, one for each row."""

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    facts: Sequence[dict[str, object]]


Provider = Callable[[Path | None], Section]
"""Given a directory, only what lies there, else everything. Downloads nothing and waits for nobody for long."""


def providers(node: Path) -> tuple[Provider, ...]:
    """In the order in which they are shown."""
    from mica.cli.mounts import repository_mounts
    from mica.cli.nodestatus import image_section, node_section

    return (partial(node_section, node), partial(image_section, node), repository_mounts)


def status(
    directory: Annotated[
        Path | None,
        typer.Argument(parser=mount_path, help="A mounted repository, or a path in it; without it all of this host."),
    ] = None,
    node: NodeOption = NODE_DIRECTORY,
    as_json: JsonOption = False,
) -> None:
    """Show what of mica is at work here: the node and the images it serves, the repositories that are mounted; what
    they fetched, and how much of them is local.

    Local is what is in the cache and can be read without a server. Nothing is fetched to tell it: catalogs that are not
    in the cache are not looked into, and counted. Passthrough tells from which size on the kernel reads files itself,
    or why it does not.
    """
    sections = [provider(directory) for provider in providers(node)]
    if directory is not None and not any(section.rows for section in sections):
        raise UserError(f"{directory} is in no mounted repository.")
    if as_json:
        print_json({section.key: list(section.facts) for section in sections})
        return
    shown = [section for section in sections if section.rows]
    for section in shown:
        print_table(section.columns, section.rows, title=section.title if len(shown) > 1 else "")
    if not shown:
        sys.stdout.write("Nothing is mounted.\n")
