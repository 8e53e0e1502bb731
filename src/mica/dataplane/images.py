"""Metadata images on a node: obtained once for each layer, kept in the cache, and mounted for as long as somebody holds
them.

    <cache>/images/<key>          the image
    <cache>/images/<key>.json     {"root": digest of the root catalog for which it was last found right,
                                   "lists": digests of the chunk lists it needs}

The key is a digest of repository and layer. As long as the repository is at the revision of the record the image is
used without a look at any catalog. Any thread.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mica import linux
from mica.fetch.cache import Cache
from mica.fetch.client import RepositoryClient
from mica.fetch.parts import keep_list
from mica.files import mapped_os_errors, owned_fd, replace_file
from mica.flight import Flight
from mica.metaimage.inode import Inode
from mica.metaimage.reader import read_chunk_lists
from mica.metaimage.writer import write_image
from mica.mount.imagemount import mount_image
from mica.node.imagecheck import Check, check_image
from mica.node.layerimage import obtain_layer_image
from mica.repo.catalog import NestedCatalog
from mica.thin.descriptor import ThinLayer

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
        """The image of a layer in the revision with this root catalog; its chunk lists are in the cache too, which
        `listed` is told as soon as it is so.

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
        if not (self._cache.touch(str(path)) and _read_root(record) == root.digest.text):
            lists: list[str] | None = None

            def check(file: BinaryIO, what: str) -> None:
                # The lists vouch for themselves, and prefetching waits for them.
                nonlocal lists
                lists = self._keep_lists(file, what)
                listed()
                self._check(file, what)

            obtain_layer_image(client, root, layer.path.encode("utf-8"), path, check=check)
            self._cache.account(str(path))
            if lists is None:  # the image was made here
                with path.open("rb") as image:
                    lists = self._keep_lists(image, str(path))
            document = json.dumps({"layer": layer.url, "root": root.digest.text, "lists": lists})
            replace_file(record, document.encode("utf-8"), mode=0o600, durable=False)

    def _keep_lists(self, image: BinaryIO, what: str) -> list[str]:
        """The chunk lists of an image into the cache; their digests."""
        lists = []
        for digest, data in read_chunk_lists(image, what):
            keep_list(self._cache, digest, data)
            lists.append(digest.text)
        return lists

    def mask(self, top: Path) -> Path:
        """An image that hides the directories of objects, with the root directory of a mounted layer."""
        status = top.stat()
        xattrs = {name.encode(): os.getxattr(top, name) for name in os.listxattr(top)}
        root = Inode(
            status.st_mode, status.st_uid, status.st_gid, *divmod(status.st_mtime_ns, 1_000_000_000), xattrs=xattrs
        )
        path = self._directory / f"mask-{hashlib.sha256(repr(root).encode()).hexdigest()}"
        self._flight.do(path, lambda: _keep_mask(self._cache, path, root))
        return path


def _keep_mask(cache: Cache, path: Path, root: Inode) -> None:
    if not cache.touch(str(path)):
        replace_file(path, format_mask(root), mode=0o600, durable=False)


def format_mask(root: Inode) -> bytes:
    """An image with this root directory and a whiteout for each directory of objects."""
    whiteouts = ((b"/%02x" % number, Inode(stat.S_IFCHR)) for number in range(256))
    image = io.BytesIO()
    write_image(itertools.chain([(b"", root)], whiteouts), image)
    return image.getvalue()


def _read_root(record: Path) -> str | None:
    try:
        values = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    root = values.get("root") if isinstance(values, dict) else None
    return root if isinstance(root, str) else None


class MountedImages:
    """Images below one directory. What several hold is mounted once, and unmounted when the last lets go: a union that
    was made of it keeps it none the less."""

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
            if not self._holders.get(name):
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
                        linux.umount2(target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
                        target.rmdir()


def _read_ahead(image: Path) -> None:
    """All of it will be needed by whoever lists or searches, and the kernel reads such a file block by block."""
    with owned_fd(os.open(image, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
