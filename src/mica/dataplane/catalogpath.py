"""From a path in a repository to the catalog that has it, fetching no more catalogs than lie on the way."""

import os
from typing import NamedTuple

from mica.errors import IntegrityError
from mica.fetch.client import RepositoryClient
from mica.files import mapped_os_errors, owned_fd
from mica.repo.catalog import Catalog, NestedCatalog, Row
from mica.repo.entry import Flag
from mica.repo.objectname import file_object
from mica.texts import quoted


class Located(NamedTuple):
    """A row and its catalog."""

    catalog: Catalog
    row: Row


def locate(client: RepositoryClient, root: NestedCatalog, path: bytes) -> Located | None:
    """The row of a path, None if there is none. For a mountpoint it is the row in the parent's catalog. Raises what
    fetching raises."""
    catalog = open_catalog(client, root)
    while (deeper := _on_the_way(catalog, path)) is not None:
        catalog = open_catalog(client, deeper)
    row = catalog.find(path)
    return None if row is None else Located(catalog, row)


def fetch_small_file(client: RepositoryClient, root: NestedCatalog, path: bytes, limit: int) -> bytes | None:
    """The content of a file, None if there is none. Raises IntegrityError if it is not a regular file of at most
    `limit` bytes, and what fetching raises."""
    found = locate(client, root, path)
    if found is None:
        return None
    what, entry = f"{quoted(path)} of {client.fqrn}", found.row.entry
    try:
        name = file_object(entry)
    except ValueError as error:
        raise IntegrityError(f"{what} has an impossible entry: {error}.") from error
    if not entry.is_regular or entry.flags & Flag.CHUNKED or name is None or entry.size > limit:
        raise IntegrityError(f"{what} is no file of at most {limit} bytes.")
    with owned_fd(client.open_object(name)) as fd, mapped_os_errors(f"read {what}"):
        return os.pread(fd, limit, 0)


def open_catalog(client: RepositoryClient, reference: NestedCatalog) -> Catalog:
    """Raises IntegrityError if it belongs to another path than the one it is listed for."""
    catalog = client.catalog(reference)
    if catalog.root_prefix != reference.path:
        raise IntegrityError(f"Catalog {catalog.name} says it belongs to {catalog.root_prefix!r}.")
    return catalog


def _on_the_way(catalog: Catalog, path: bytes) -> NestedCatalog | None:
    """The nested catalog that has the path, if there is one. Nested catalogs of one catalog never overlap."""
    here = catalog.root_prefix + b"/"
    for nested in catalog.nested():
        if path.startswith(nested.path + b"/") and nested.path.startswith(here):
            return nested
    return None
