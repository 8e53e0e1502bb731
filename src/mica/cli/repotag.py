"""`mica repo tag …`: names of revisions."""

from typing import Annotated

import typer

from mica.cli.commands import Commands
from mica.cli.options import (
    CacheOption,
    ConfigOption,
    FqrnArgument,
    JsonOption,
    KeyOption,
    ProxyOption,
    QuotaOption,
    StateOption,
    UrlOption,
)
from mica.cli.printing import print_facts
from mica.cli.repohistory import REVISION_HELP, print_tags

app = typer.Typer(cls=Commands, help="Name revisions of a repository.", no_args_is_help=True)


@app.command(epilog="Example: mica repo tag add images.example.org release-1 --description 'first release'")
def add(
    fqrn: FqrnArgument,
    name: Annotated[str, typer.Argument(help="Letters, digits and -_./: .")],
    state: StateOption,
    revision: Annotated[
        str | None, typer.Argument(metavar="[REVISION]", help=f"{REVISION_HELP} Default: the newest revision.")
    ] = None,
    description: Annotated[str, typer.Option("--description", "-m", help="A text that listings show.")] = "",
    move: Annotated[bool, typer.Option("--move", help="Let a name that another revision has name this one.")] = False,
) -> None:
    """Give a revision a name. A named revision is never garbage."""
    from mica.publish.manager import ReleaseManager
    from mica.publish.tags import add_tag

    with ReleaseManager.open(state, fqrn) as manager:
        tag = add_tag(manager, name, revision, description=description, move=move)
    print_facts({"repository": fqrn, "tag": tag.name, "revision": tag.revision, "root_catalog": tag.root_catalog})


@app.command(epilog="Example: mica repo tag rm images.example.org release-1")
def rm(
    fqrn: FqrnArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Tags; all of them are removed, or none.")],
    state: StateOption,
) -> None:
    """Remove names. The revisions stay readable by their number until garbage is collected."""
    from mica.publish.manager import ReleaseManager
    from mica.publish.tags import remove_tags

    with ReleaseManager.open(state, fqrn) as manager:
        removed = remove_tags(manager, names)
    for tag in removed:
        print_facts({"removed": tag.name, "revision": tag.revision})


@app.command(epilog="Example: mica repo tag ls images.example.org")
def ls(
    fqrn: FqrnArgument,
    state: StateOption,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this tag.")] = None,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tags by name."""
    from mica.cli.places import Places

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    with places.open(fqrn) as client:
        history = client.history(client.update().manifest)
        tags = sorted(history.tags.values()) if name is None else [history.tag(name)]
    print_tags(tags, as_json=as_json)


@app.command(epilog="Example: mica repo tag directories images.example.org --on")
def directories(
    fqrn: FqrnArgument,
    wanted: Annotated[bool, typer.Option("--on/--off", help="Begin or end to show them.")],
    state: StateOption,
) -> None:
    """Show the revision of every tag as a directory below /.cvmfs/snapshots, in all mounts, or end to do so."""
    from mica.publish.manager import ReleaseManager
    from mica.publish.tags import set_tag_directories

    with ReleaseManager.open(state, fqrn) as manager:
        head = set_tag_directories(manager, wanted=wanted)
    print_facts({"repository": fqrn, "revision": head.revision, "tag_directories": "on" if wanted else "off"})
