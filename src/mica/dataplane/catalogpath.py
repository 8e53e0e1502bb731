"""From a path in a repository to the catalog that has it, fetching no more catalogs than lie on the way."""

from typing import NamedTuple

from mica.errors import IntegrityError
from mica.fetch.client import RepositoryClient
from mica.repo.catalog import Catalog, NestedCatalog, Row


class Located(NamedTuple):
    """A row and its catalog."""

    catalog: Catalog
    row: Row


def locate(client: RepositoryClient, root: NestedCatalog, path: bytes) -> Located | None:
    """The row of a path, None if there is none; of a mountpoint the one in the parent's catalog. Raises what fetching
    raises."""
    catalog = open_catalog(client, root)
    while (deeper := _on_the_way(catalog, path)) is not None:
        catalog = open_catalog(client, deeper)
    row = catalog.find(path)
    return None if row is None else Located(catalog, row)


def open_catalog(client: RepositoryClient, reference: NestedCatalog) -> Catalog:
    """Raises IntegrityError if it belongs to another path than the one it is listed for."""
    catalog = client.catalog(reference)
    if catalog.root_prefix != reference.path:
        raise IntegrityError(f"Catalog {catalog.name} says it belongs to {catalog.root_prefix!r}.")
    return catalog


def _on_the_way(catalog: Catalog, path: bytes) -> NestedCatalog | None:
    """The nested catalog that has the path, if one has. Those of one catalog do not lie in each other."""
    here = catalog.root_prefix + b"/"
    for nested in catalog.nested():
        if path.startswith(nested.path + b"/") and nested.path.startswith(here):
            return nested
    return None
