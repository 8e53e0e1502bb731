"""`mica repo history|diff|rollback`: what was published, what differs, the way back."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

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
from mica.cli.printing import print_facts, print_json, print_table
from mica.texts import format_time, printable_path

if TYPE_CHECKING:
    from mica.fetch.client import RepositoryClient
    from mica.fetch.revisions import RootFacts
    from mica.repo.catalog import Catalog, NestedCatalog
    from mica.repo.difference import Change
    from mica.repo.history import Tag

REVISION_HELP = "A tag, the number of a revision, or the digest of its root catalog."


def history(
    fqrn: FqrnArgument,
    state: StateOption,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    all_of_them: Annotated[
        bool, typer.Option("--all", help="Also list revisions without a name, as far as they are still there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the named revisions, newest first."""
    from mica.cli.places import Places
    from mica.fetch.revisions import all_revisions

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    with places.open(fqrn) as client:
        manifest = client.update().manifest
        tags = list(client.history(manifest).tags.values())
        if all_of_them:
            named = {tag.root_catalog for tag in tags}
            revisions = all_revisions(manifest, lambda reference: look(client, reference))
            tags += [each for each in revisions if each.root_catalog not in named]
    print_tags(sorted(tags, key=lambda tag: (-tag.revision, tag.name)), as_json=as_json)


def diff(
    fqrn: FqrnArgument,
    before: Annotated[str, typer.Argument(metavar="A", help=REVISION_HELP)],
    state: StateOption,
    after: Annotated[str, typer.Argument(metavar="[B]", help="The same; default: the newest revision.")] = "trunk",
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each difference as a line of JSON.")] = False,
) -> None:
    """List the paths that differ between two revisions: added, removed, or changed in type, content or metadata."""
    from mica.cli.places import Places
    from mica.fetch.revisions import find_revision
    from mica.repo.catalog import NestedCatalog
    from mica.repo.difference import differences

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    with places.open(fqrn) as client:
        manifest = client.update().manifest
        tags = client.history(manifest)

        def root(text: str) -> NestedCatalog:
            found = find_revision(text, manifest, tags, lambda reference: look(client, reference))
            return NestedCatalog(b"", found.root_catalog, found.size)

        @contextlib.contextmanager
        def opened(reference: NestedCatalog) -> "Iterator[Catalog]":
            yield client.catalog(reference)

        with contextlib.closing(differences(root(before), root(after), opened)) as changes:
            for change in changes:
                sys.stdout.write(_json_line(change) if as_json else _line(change))


def rollback(
    fqrn: FqrnArgument,
    state: StateOption,
    revision: Annotated[
        str | None, typer.Argument(metavar="[REVISION]", help=f"{REVISION_HELP} Default: the one before the newest.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish the content of an older revision as the newest one, and forget the names of those between them."""
    from mica.publish.manager import ReleaseManager
    from mica.publish.tags import roll_back

    with ReleaseManager.open(state, fqrn) as manager:
        done = roll_back(manager, revision)
    facts = {
        "repository": fqrn, "revision": done.head.revision, "content_of": done.target.revision,
        "removed_tags": [tag.name for tag in done.removed],
    }  # fmt: skip
    if as_json:
        print_json(facts)
    else:
        print_facts({**facts, "removed_tags": ", ".join(tag.name for tag in done.removed) or "none"})


def look(client: "RepositoryClient", reference: "NestedCatalog") -> "RootFacts":
    """What a root catalog says of its revision."""
    from mica.fetch.revisions import root_facts

    catalog = client.catalog(reference)
    return root_facts(catalog, reference.digest, size=catalog.size)


def print_tags(tags: "list[Tag]", *, as_json: bool) -> None:
    if as_json:
        print_json([{**tag._asdict(), "root_catalog": tag.root_catalog.text} for tag in tags])
        return
    rows = [
        (tag.revision, tag.name, format_time(tag.timestamp), tag.root_catalog,
         tag.description)
        for tag in tags
    ]  # fmt: skip
    print_table(("revision", "tag", "published", "root catalog", "description"), rows)


def _line(change: "Change") -> str:
    path = printable_path(change.path)
    if change.differs:
        return f"changed  {path}  ({', '.join(change.differs)})\n"
    return f"{_kind_of_change(change):<7}  {path}\n"


def _json_line(change: "Change") -> str:
    found = change.after or change.before
    assert found is not None
    facts: dict[str, object] = {
        "path": printable_path(change.path),
        "change": _kind_of_change(change),
        "kind": _kind(found.entry.mode),
    }
    if change.differs:
        facts["differs"] = change.differs
    return json.dumps(facts, ensure_ascii=False) + "\n"


def _kind_of_change(change: "Change") -> str:
    return "added" if change.before is None else "removed" if change.after is None else "changed"


def _kind(mode: int) -> str:
    import stat

    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "link",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
    }
    return kinds.get(stat.S_IFMT(mode), "unknown")
