"""Removes images from a repository in the caller's transaction: records by name, and layers that no record names.

Only layers that mica published are removed: a layer without facts beside it is another tool's and stays. Removed layers
are gone from the next revision; their objects stay until garbage is collected. One thread.
"""

from collections.abc import Iterable, Iterator

from mica.publish.catalogtree import CatalogTree, parent_path
from mica.publish.storedfiles import load_file
from mica.repo.entry import Entry
from mica.store.base import ObjectStore
from mica.thin.layout import (
    CHAINS,
    IMAGES,
    LAYERS,
    chain_target,
    chained_layer,
    facts_path,
    layer_path,
    metadata_image_paths,
    trace_path,
)
from mica.thin.record import RECORD_LIMIT, ImageRecord, parse_record

_FACTS_SUFFIX = b".json"


def list_records(catalogs: CatalogTree, store: ObjectStore) -> Iterator[tuple[bytes, ImageRecord]]:
    """Paths and records of all images. Raises UserError for a malformed record."""
    for path, _ in files_below(catalogs, IMAGES):
        data = load_file(catalogs, store, path, limit=RECORD_LIMIT)
        yield path, parse_record(data or b"", path.decode("utf-8", "replace"))


def remove_record(catalogs: CatalogTree, path: bytes) -> bool:
    """Remove an image's record, and directories that become empty; False if it was not there."""
    if catalogs.find(path) is None:
        return False
    catalogs.remove(path)
    while (path := parent_path(path)) != IMAGES and not catalogs.children(path):
        catalogs.remove(path)
    return True


def unused_layers(catalogs: CatalogTree, records: Iterable[ImageRecord]) -> set[str]:
    """Layers that mica published and that no record names, by the hex of their digests."""
    used = {layer.digest for record in records for layer in record.descriptor.layers}
    return set(own_layers(catalogs)) - used


def remove_layers(catalogs: CatalogTree, layers: Iterable[str]) -> None:
    """Remove layers with the files beside them, and the chain links to them."""
    targets = set()
    for text in layers:
        targets.add(chain_target(f":{text}"))
        for path in (layer_path(f":{text}"), *files_of_layer(text)):
            catalogs.remove(path)
    for path, entry in list(files_below(catalogs, CHAINS)):
        if entry.target in targets:
            catalogs.remove(path)


def files_of_layer(text: str) -> list[bytes]:
    """Where the files beside a layer may be; by the hex of its digest."""
    digest = f":{text}"
    return [*metadata_image_paths(digest), trace_path(digest), facts_path(digest)]


def stray_chains(catalogs: CatalogTree) -> list[bytes]:
    """Chain links whose layer is not there."""
    return [
        path
        for path, entry in files_below(catalogs, CHAINS)
        if (layer := chained_layer(entry.target)) and catalogs.find(layer_path(layer)) is None
    ]


def own_layers(catalogs: CatalogTree) -> Iterator[str]:
    """Layers that mica published, by hex."""
    if catalogs.find(LAYERS) is None:
        return
    for directory in catalogs.children(LAYERS):
        if directory.is_directory:
            for entry in catalogs.children(LAYERS + b"/" + directory.name):
                if entry.name.endswith(_FACTS_SUFFIX):
                    yield entry.name.removesuffix(_FACTS_SUFFIX).decode("ascii", "replace")


def files_below(catalogs: CatalogTree, directory: bytes) -> Iterator[tuple[bytes, Entry]]:
    """Everything but directories, with paths; nothing if the directory is not there."""
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
