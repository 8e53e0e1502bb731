"""Metadata images on a node: obtained once for each layer, kept in the cache, and mounted for as long as they are held.

    <cache>/images/<key>          the image
    <cache>/images/<key>.json     {"root": digest of the root catalog for which it was last found right,
                                   "lists": digests of the chunk lists it needs,
                                   "implied": the directories that the layer's archive did not bring}

The key is a digest of repository and layer. While the repository is at the revision that the .json file names, the
image is used without reading any catalog. Any thread.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from mica import linux
from mica.cache.cache import Cache
from mica.cache.partfiles import keep_list
from mica.dataplane.catalogpath import fetch_small_file
from mica.dataplane.erofsmount import mount_image
from mica.dataplane.imagecheck import Check, check_image
from mica.dataplane.layerimage import obtain_layer_image
from mica.dataplane.unionimages import (
    Entries,
    directory_entries,
    format_image,
    mask_entries,
    names_to_mask,
    sheet_entries,
)
from mica.errors import MicaError, UserError
from mica.fetch.client import RepositoryClient
from mica.files import mapped_os_errors, owned_fd
from mica.flight import Flight
from mica.layers.implieddirectories import FACTS_MAX_BYTES, parse_implied
from mica.logs import logger
from mica.metaimage.reader import read_chunk_lists
from mica.repo.catalog import NestedCatalog
from mica.thin.descriptor import ThinLayer
from mica.thin.layout import facts_of_tree
from mica.union.belowlinks import Sheet
from mica.union.directories import Directory

_log = logger(__name__)

# Enough to tell the layers of one node apart, and short in the options of a mount.
_NAME_DIGITS = 24


class LayerImages:
    def __init__(self, cache: Cache, *, check: Check = check_image) -> None:
        self._check = check
        self._directory = cache.root / "images"
        self._cache = cache
        self._flight: Flight[None] = Flight()

    def obtain(
        self,
        client: RepositoryClient,
        root: NestedCatalog,
        layer: ThinLayer,
        listed: Callable[[], None] = lambda: None,
    ) -> Path:
        """The image of a layer in the revision with this root catalog. Its chunk lists are in the cache then too;
        `listed` is called as soon as they are.

        Raises NotFoundError if the revision has no such layer, IntegrityError and TemporaryError as fetching does.
        """
        path = self._directory / hashlib.sha256(layer.url.encode("utf-8")).hexdigest()
        self._flight.do(path, lambda: self._obtain(client, root, layer, path, listed))
        listed()
        return path

    def _obtain(
        self, client: RepositoryClient, root: NestedCatalog, layer: ThinLayer, path: Path, listed: Callable[[], None]
    ) -> None:
        record = path.with_suffix(".json")
        if not (self._cache.touch(str(path)) and _read_record(record).get("root") == root.digest.text):
            lists: list[str] | None = None

            def check(file: BinaryIO, what: str) -> None:
                # The chunk lists are verified by their digests, and prefetching waits for them.
                nonlocal lists
                lists = self._keep_lists(file, what)
                listed()
                self._check(file, what)

            with ThreadPoolExecutor(1) as pool:
                facts = pool.submit(_fetch_implied, client, root, layer)
                obtain_layer_image(client, root, layer.path.encode("utf-8"), path, check=check)
                implied = facts.result()
            if lists is None:  # the image was made here
                with path.open("rb") as image:
                    lists = self._keep_lists(image, str(path))
            document = {"layer": layer.url, "root": root.digest.text, "lists": lists, "implied": implied}
            self._cache.keep_bytes(record, json.dumps(document).encode("utf-8"))

    def _keep_lists(self, image: BinaryIO, what: str) -> list[str]:
        """Put the chunk lists of an image into the cache; returns their digests."""
        lists = []
        for digest, data in read_chunk_lists(image, what):
            keep_list(self._cache, digest, data)
            lists.append(digest.text)
        return lists

    def implied(self, image: Path) -> tuple[bytes, ...]:
        """The implied directories of an obtained layer."""
        names = _read_record(image.with_suffix(".json")).get("implied", [])
        return tuple(bytes.fromhex(name) for name in names)

    def directories(self, directories: Sequence[Directory]) -> Path:
        """An image of these directories alone."""
        return self._small_image("dirs", directory_entries(directories))

    def sheet(self, sheet: Sheet) -> Path:
        """An image of a sheet. Raises OSError, UserError for more than an image can have, and what `sheet_entries`
        raises."""
        try:
            return self._small_image("sheet", sheet_entries(sheet))
        except ValueError as error:
            raise UserError(
                f"No image can be made of the files of a layer below a link of a lower layer: {error}."
            ) from error

    def mask(self, layers: Sequence[Path]) -> Path:
        """An image that hides the directories of objects below these mounted layers, top first, with the topmost one's
        root directory. Raises what `names_to_mask` raises."""
        entries = mask_entries(Directory(b"/", os.fsencode(layers[0])), names_to_mask(layers))
        return self._small_image("mask", entries)

    def _small_image(self, kind: str, entries: Entries) -> Path:
        path = self._directory / f"{kind}-{hashlib.sha256(repr(entries).encode()).hexdigest()}"
        self._flight.do(path, lambda: _keep_image(self._cache, path, entries))
        return path


def _fetch_implied(client: RepositoryClient, root: NestedCatalog, layer: ThinLayer) -> list[str]:
    """Hex of the implied directories that the layer facts list; only mica publishes facts. They matter only for
    attributes, so errors in the facts go to the log and are no failure."""
    path = facts_of_tree(layer.path.encode("utf-8"))
    try:
        data = None if path is None else fetch_small_file(client, root, path, FACTS_MAX_BYTES)
        implied = () if data is None else parse_implied(data, f"{path!r} of {client.fqrn}")
    except MicaError as error:
        _log.warning("%s is used without its layer facts: %s", layer.url, error)
        return []
    return [name.hex() for name in implied]


def _keep_image(cache: Cache, path: Path, entries: Entries) -> None:
    if not cache.touch(str(path)):
        cache.keep_bytes(path, format_image(entries))


def _read_record(record: Path) -> dict[str, Any]:
    try:
        values = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    # Files of former versions lack the implied directories: they are written again.
    return values if isinstance(values, dict) and "implied" in values else {}


class MountedImages:
    """Images below one directory. An image with several holders is mounted once, and unmounted when the last one lets
    go; a union that was made of it still keeps it."""

    def __init__(self, directory: Path, *, by_loop: bool) -> None:
        self._directory = directory
        self._by_loop = by_loop
        self._lock = threading.Lock()
        self._holders: dict[str, int] = {}

    @contextlib.contextmanager
    def holding(self, image: Path) -> Iterator[Path]:
        """Mounted for the block."""
        name = image.name[:_NAME_DIGITS]
        target = self._directory / name
        with self._lock:
            # A held image may have been unmounted by hand: an empty directory must not become a layer.
            if not self._holders.get(name) or not os.path.ismount(target):
                with mapped_os_errors(f"mount the metadata image {image}"):
                    target.mkdir(mode=0o700, exist_ok=True)
                    mount_image(image, target, by_loop=self._by_loop)
                    _read_ahead(image)
            self._holders[name] = self._holders.get(name, 0) + 1
        try:
            yield target
        finally:
            with self._lock:
                self._holders[name] -= 1
                if not self._holders[name]:
                    del self._holders[name]
                    with mapped_os_errors(f"unmount {target}"):
                        # There is more than one mount if a predecessor of this process died.
                        linux.unmount_all(target)
                        target.rmdir()


def _read_ahead(image: Path) -> None:
    """Programs that list or search need all of the image, and the kernel reads such a file block by block."""
    with owned_fd(os.open(image, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
