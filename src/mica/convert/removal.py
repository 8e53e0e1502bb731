"""Images out of a repository: records by name, and the layers that no record names. In a transaction of the caller's.

Only what a conversion of ours published counts: a layer without facts beside it is somebody else's and stays. What is
removed is gone from the next revision; its objects stay until garbage is collected. One thread.
"""

from collections.abc import Iterable, Iterator

from mica.digest import Suffix
from mica.publish.catalogtree import CatalogTree, parent_path
from mica.repo.entry import Entry
from mica.repo.objects import unpack
from mica.store.base import ObjectStore, read_limited
from mica.thin.layout import (
    CHAINS,
    IMAGES,
    LAYERS,
    chain_target,
    facts_path,
    layer_path,
    metadata_image_path,
    trace_path,
)
from mica.thin.record import RECORD_LIMIT, ImageRecord, parse_record

_FACTS_SUFFIX = b".json"


def list_records(catalogs: CatalogTree, store: ObjectStore) -> Iterator[tuple[bytes, ImageRecord]]:
    """Paths and records of all images. Raises UserError for a record that is none."""
    for path, entry in _files_below(catalogs, IMAGES):
        yield path, parse_record(_content(catalogs, store, path, entry), path.decode("utf-8", "replace"))


def remove_record(catalogs: CatalogTree, path: bytes) -> bool:
    """Forget an image, and the directories that it was the last in; False if it was not there."""
    if catalogs.find(path) is None:
        return False
    catalogs.remove(path)
    while (path := parent_path(path)) != IMAGES and not catalogs.children(path):
        catalogs.remove(path)
    return True


def unused_layers(catalogs: CatalogTree, records: Iterable[ImageRecord]) -> set[str]:
    """Layers of ours that none of the records names, by the hex of their digests."""
    used = {layer.digest for record in records for layer in record.descriptor.layers}
    return set(_own_layers(catalogs)) - used


def remove_layers(catalogs: CatalogTree, layers: Iterable[str]) -> None:
    """Remove layers with all that lies beside them, and the chain links to them."""
    targets = set()
    for text in layers:
        digest = f":{text}"
        targets.add(chain_target(digest))
        for path in (layer_path(digest), metadata_image_path(digest), trace_path(digest), facts_path(digest)):
            catalogs.remove(path)
    for path, entry in list(_files_below(catalogs, CHAINS)):
        if entry.target in targets:
            catalogs.remove(path)


def _own_layers(catalogs: CatalogTree) -> Iterator[str]:
    if catalogs.find(LAYERS) is None:
        return
    for directory in catalogs.children(LAYERS):
        if directory.is_directory:
            for entry in catalogs.children(LAYERS + b"/" + directory.name):
                if entry.name.endswith(_FACTS_SUFFIX):
                    yield entry.name.removesuffix(_FACTS_SUFFIX).decode("ascii", "replace")


def _files_below(catalogs: CatalogTree, directory: bytes) -> Iterator[tuple[bytes, Entry]]:
    if catalogs.find(directory) is None:
        return
    pending = [directory]
    while pending:
        parent = pending.pop()
        for entry in catalogs.children(parent):
            path = parent + b"/" + entry.name
            if entry.is_directory:
                pending.append(path)
            else:
                yield path, entry


def _content(catalogs: CatalogTree, store: ObjectStore, path: bytes, entry: Entry) -> bytes:
    chunks = catalogs.chunks(path)
    pieces = [(chunk.digest, Suffix.CHUNK) for chunk in chunks]
    if entry.digest is not None and not chunks:
        pieces = [(entry.digest, Suffix.FILE)]
    return b"".join(
        unpack(read_limited(store, digest.object_path(suffix), RECORD_LIMIT), digest, limit=RECORD_LIMIT)
        for digest, suffix in pieces
    )
