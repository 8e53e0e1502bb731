"""A repository as a tree, over a catalog of a hostile publisher."""

import errno
from pathlib import Path
from typing import cast

import pytest
from tests.support.catalogs import a_file, run_sql, some_digest, write_catalog

from mica.fetch.client import RepositoryClient
from mica.fetch.counters import TrafficCounter
from mica.fuse.tree import ROOT_INODE
from mica.mount.repotree import RepositoryTree
from mica.repo.catalog import Catalog, NestedCatalog


class OneCatalog:
    """A client of a repository that has just this catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.counter = TrafficCounter()

    def catalog(self, _reference: NestedCatalog) -> Catalog:
        return self._catalog


@pytest.mark.parametrize("rowid", [1 << 40, (2 << 40) + 1, -7, 0])
def test_a_row_cannot_take_the_number_of_a_row_of_another_catalog(tmp_path: Path, rowid: int) -> None:
    path = write_catalog(tmp_path / "catalog", [(b"/file", a_file(b"file")), (b"/other", a_file(b"other"))])
    run_sql(path, f"UPDATE catalog SET rowid = {rowid} WHERE name = 'file'")
    with Catalog.open(path, "C") as catalog:
        client = cast("RepositoryClient", OneCatalog(catalog))
        tree = RepositoryTree(client, NestedCatalog(b"", some_digest("root"), 1))
        assert tree.attributes(tree.lookup(ROOT_INODE, b"other").inode).inode >> 40 == 1
        for ask in (lambda: tree.lookup(ROOT_INODE, b"file"), lambda: list(tree.children(ROOT_INODE))):
            with pytest.raises(OSError, match="impossible number") as caught:
                ask()
            assert caught.value.errno == errno.EIO


def test_an_unknown_compression_is_an_error_of_reading(tmp_path: Path) -> None:
    """Older programs would meet it in files of newer ones; the rest of the tree is readable."""
    odd = a_file(b"file")
    path = write_catalog(tmp_path / "catalog", [(b"/file", odd._replace(flags=odd.flags | 0x1000))])
    with Catalog.open(path, "C") as catalog:
        client = OneCatalog(catalog)
        tree = RepositoryTree(cast("RepositoryClient", client), NestedCatalog(b"", some_digest("root"), 1))
        inode = tree.lookup(ROOT_INODE, b"file").inode
        for number, ask in enumerate((tree.open, tree.storage, tree.objects), 1):
            with pytest.raises(OSError, match="unknown compression 2") as caught:
                ask(inode)
            assert caught.value.errno == errno.EIO
            assert client.counter.read().io_errors == number
