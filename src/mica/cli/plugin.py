"""`mica plugin`: the managed form of Docker's graph driver."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mica.cli.commands import Commands
from mica.cli.options import JsonOption

app = typer.Typer(
    name="plugin",
    cls=Commands,
    help="The managed plugin of Docker Engines.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(epilog="Example: mica plugin build plugin && docker plugin create mica plugin")
def build(
    directory: Annotated[Path, typer.Argument(help="Directory to make, for docker plugin create.")],
    mirror: Annotated[
        list[str] | None, typer.Option("--mirror", help="A source of packages in mmdebstrap's form; may be repeated.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Make the plugin's root file system and configuration: Debian's Python, mica, and the packages that it imports.

    Two builds of the same packages are the same bytes; SOURCE_DATE_EPOCH is the time of all files, otherwise 1970.
    Needs root and mmdebstrap.
    """
    from mica.cli.printing import print_facts, print_json
    from mica.drivers.docker.pluginimage import build_plugin

    epoch_s = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    size = build_plugin(directory, mirrors=tuple(mirror or ()), epoch_s=epoch_s)
    facts: dict[str, object] = {"directory": str(directory), "bytes": size}
    if json_output:
        print_json(facts)
    else:
        print_facts(facts)
