"""Tag directories: below `/.cvmfs/snapshots` every tag is a directory with the revision that it names.

The stock client and mica's mount show them; listings of `/` do not (docs/format/history.md, "Tag directories"). They
are in a nested catalog, which is made once when the repository's owner wants it, and which every later publication
keeps equal to the tags. Works on the catalogs of the caller's transaction; one thread.
"""

from collections.abc import Callable, Iterable

from mica.digest import Digest
from mica.errors import NotFoundError
from mica.fetch.revisions import RootFacts
from mica.publish.catalogtree import CatalogTree, base_name
from mica.repo.catalog import NestedCatalog
from mica.repo.entry import MARKER, Entry, Flag
from mica.repo.history import MAGIC_TAGS, Tag

RESERVED = b"/.cvmfs"
PLACE = RESERVED + b"/snapshots"
_SIZE = 97
"""Of the two directories, as with the stock server."""
_LONGEST_NAME = 255

LookAtRoot = Callable[[NestedCatalog], tuple[RootFacts, Entry]]


def are_shown(catalogs: CatalogTree) -> bool:
    return catalogs.find(PLACE) is not None


def begin(catalogs: CatalogTree, marker: Entry, *, now_s: int) -> None:
    """Make their place, empty and hidden from listings, with a catalog of its own."""
    hidden = Entry(base_name(RESERVED), 0o040555, _SIZE, now_s, None, 0, 0, Flag.DIRECTORY | Flag.HIDDEN, links=2)
    catalogs.remove(RESERVED)
    catalogs.put(RESERVED, hidden)
    catalogs.put(PLACE, hidden._replace(name=base_name(PLACE), flags=int(Flag.DIRECTORY)))
    catalogs.nest(RESERVED, marker._replace(name=MARKER, mode=0o100444, mtime_s=now_s))


def end(catalogs: CatalogTree) -> None:
    """Remove them, if there are any; the tags stay."""
    if are_shown(catalogs):
        catalogs.remove(RESERVED)


def follow(catalogs: CatalogTree, tags: Iterable[Tag], look: LookAtRoot) -> bool:
    """Have a directory for each of these tags and no others; whether anything changed. A tag whose root catalog is gone
    has none, nor one whose name cannot be that of a directory."""
    present = {base_name(path): reference for path, reference in catalogs.bound(PLACE).items()}
    wanted = {tag.name.encode("utf-8", "surrogateescape"): tag for tag in tags if _can_be_shown(tag)}
    changed = False
    for name, reference in present.items():
        if name not in wanted or wanted[name].root_catalog != reference.digest:
            catalogs.remove(PLACE + b"/" + name)
            changed = True
    for name, tag in sorted(wanted.items()):
        if name not in present or present[name].digest != tag.root_catalog:
            changed |= _bind(catalogs, name, NestedCatalog(b"", tag.root_catalog, tag.size), look)
    return changed


def name_one(tags: Iterable[Tag], root: Digest) -> bool:
    """Whether a tag that is to have a directory names this root catalog."""
    return any(tag.root_catalog == root for tag in tags if _can_be_shown(tag))


def _bind(catalogs: CatalogTree, name: bytes, reference: NestedCatalog, look: LookAtRoot) -> bool:
    try:
        facts, root = look(reference)
    except NotFoundError:
        return False
    catalogs.bind(PLACE + b"/" + name, root, reference._replace(size=facts.size))
    return True


def _can_be_shown(tag: Tag) -> bool:
    name = tag.name
    return (
        name not in MAGIC_TAGS
        and "/" not in name
        and "\0" not in name
        and name not in {"", ".", ".."}
        and len(name.encode("utf-8", "surrogateescape")) <= _LONGEST_NAME
    )
