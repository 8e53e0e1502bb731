"""The catalogs of a store's newest revision, one after the other, read without the code that walks them in mica."""

import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from mica.digest import Digest, Suffix
from mica.repo.catalog import Catalog
from mica.repo.manifest import parse_manifest
from mica.store.local import LocalStore


def catalog_bytes(store: LocalStore, digest: Digest) -> bytes:
    return zlib.decompress((store.root / digest.object_path(Suffix.CATALOG)).read_bytes())


def stock_catalogs(store: LocalStore) -> Iterator[Catalog]:
    """Each is closed when the next one is asked for."""
    manifest, _ = parse_manifest((store.root / ".cvmfspublished").read_bytes(), "manifest")
    pending = [manifest.root_catalog]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "catalog"
        while pending:
            digest = pending.pop()
            path.write_bytes(catalog_bytes(store, digest))
            with Catalog.open(path, digest.text) as catalog:
                yield catalog
                pending += [nested.digest for nested in catalog.nested()]
