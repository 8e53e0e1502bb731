"""Catalogs of the storage opened for reading, each without the rest of its tree. Called by what looks into revisions
and layers that are not being changed. Any thread."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mica.digest import Suffix
from mica.errors import IntegrityError, NotFoundError
from mica.fetch.revisions import RootFacts, root_facts
from mica.files import mapped_os_errors
from mica.publish.catalogtree import load_catalog
from mica.repo.catalog import Catalog, NestedCatalog
from mica.repo.entry import Entry
from mica.store.base import ObjectSource, ObjectStore
from mica.texts import quoted_path


@contextlib.contextmanager
def opened_catalog(store: ObjectSource, work: Path, reference: NestedCatalog) -> Iterator[Catalog]:
    """A catalog, which is a file in `work` for the block. Raises NotFoundError if it is not in the storage,
    IntegrityError for wrong bytes."""
    with mapped_os_errors(f"write into {work}"):
        directory = tempfile.TemporaryDirectory(prefix="look-", dir=work)
    with directory as place:
        path = Path(place).absolute() / "catalog.sqlite"
        load_catalog(store, reference, path)
        with Catalog.open(path, f"{reference.digest} of {quoted_path(reference.path)}") as catalog:
            yield catalog


def look_at_root(store: ObjectSource, work: Path, reference: NestedCatalog) -> tuple[RootFacts, Entry]:
    """What a root catalog says of its revision, and the entry of its root."""
    with opened_catalog(store, work, reference) as catalog:
        root = catalog.find(b"")
        if root is None:
            raise IntegrityError(f"Catalog {reference.digest} has no entry for its own root.")
        return root_facts(catalog, reference.digest, size=catalog.size), root.entry


def refresh_tree(store: ObjectStore, work: Path, reference: NestedCatalog) -> bool:
    """Give all objects of a catalog, and of those nested in it, the present time, so that no collection of garbage
    takes them for old. False if one is missing, or a catalog is damaged."""
    pending = [reference]
    while pending:
        one = pending.pop()
        try:
            with opened_catalog(store, work, one) as catalog:
                paths = {digest.object_path(suffix) for digest, suffix, _ in catalog.objects()}
                paths.add(one.digest.object_path(Suffix.CATALOG))
                if not all(map(store.refresh, paths)):
                    return False
                pending += catalog.nested()
        except (NotFoundError, IntegrityError):
            return False
    return True
