"""Magic extended attributes: a mount describes itself and its files to programs that ask for a name.

Names and texts without `mica.` in them are the stock client's, so that the scripts of its users go on working; the
table is docs/format/magic-attributes.md. By default only the root lists them, so they do not get into copies of files.
An answer downloads nothing but the catalog that has the file. Called by `treefs.py` from any thread.
"""

import enum
import os
import re
import resource
import stat
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mica import __version__
from mica.digest import Algorithm, Digest, Suffix, new_hasher
from mica.fetch.client import RepositoryClient
from mica.fetch.localshare import find_local, is_counted
from mica.files import owned_fd
from mica.fuse.passthrough import NOT_WANTED, BackingFiles
from mica.fuse.tree import ROOT_INODE
from mica.mount.repotree import RepositoryTree
from mica.mount.status import NAME as STATUS_NAME
from mica.mount.status import MountStatus, format_status
from mica.repo.catalog import COUNTERS, Catalog
from mica.repo.entry import Flag
from mica.repo.manifest import Manifest
from mica.repo.objectname import ObjectName
from mica.repo.objects import LEVEL, Compression, pack

_NAME: Final = re.compile(rb"(user\.[a-z_.]+|xfsroot\.rawlink)(?:~([0-9]{1,6}|\?))?")
_RAW_LINK: Final = "xfsroot.rawlink"
_COUNTERS_NAME: Final = "user.catalog_counters"
# The stock client's limit; the kernel's limit of a value is 64 KiB.
_PAGE_BYTES: Final = 40_000
_BLOCK_BYTES: Final = 1 << 20
# Larger objects are hashed again with the streaming compressor only, which bounds the memory that an answer takes.
_PACK_LIMIT_BYTES: Final = 16 << 20


class Visibility(enum.StrEnum):
    """Where listings show magic attributes: the values of the stock client's CVMFS_MAGIC_XATTRS_VISIBILITY."""

    ROOTONLY = "rootonly"
    NEVER = "never"
    ALWAYS = "always"


@dataclass(slots=True)
class MountState:
    """State that changes while a repository is mounted. `looks_again_at` is a time of `time.monotonic`, None if no
    newer revision will ever be shown; `backing` is None where passthrough was not wanted; `tag` is the name that the
    revision was asked for by."""

    manifest: Manifest
    looks_again_at: float | None = None
    backing: BackingFiles | None = None
    tag: str = ""
    started_at: float = field(default_factory=time.monotonic)


class MagicAttributes:
    def __init__(
        self,
        client: RepositoryClient,
        tree: RepositoryTree,
        state: MountState,
        visibility: Visibility = Visibility.ROOTONLY,
    ) -> None:
        self._visibility = visibility
        self._client = client
        self._tree = tree
        self._state = state
        self._of_mount: Mapping[str, Callable[[], object]] = {
            "user.fqrn": lambda: state.manifest.fqrn,
            "user.revision": lambda: state.manifest.revision,
            "user.root_hash": lambda: state.manifest.root_catalog,
            **({"user.tag": lambda: state.tag} if state.tag else {}),
            "user.version": lambda: __version__,
            "user.pid": os.getpid,
            "user.uptime": lambda: int(self._uptime_s() / 60),
            "user.expires": self._expires,
            "user.host": lambda: client.connection.host,
            "user.proxy": lambda: client.connection.proxy or "DIRECT",
            "user.external_host": lambda: client.external_host or "none",
            "user.timeout": lambda: int(client.connection.timeout_proxy_s),
            "user.timeout_direct": lambda: int(client.connection.timeout_direct_s),
            "user.nclg": lambda: tree.attached_catalogs,
            "user.nopen": lambda: client.counter.read().files_opened,
            "user.ndownload": lambda: client.counter.read().objects_fetched,
            "user.nioerr": lambda: client.counter.read().io_errors,
            "user.rx": lambda: client.counter.read().transferred_bytes // 1024,
            "user.usedfd": lambda: len(os.listdir("/proc/self/fd")),
            "user.maxfd": lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "user.repo_counters": lambda: _counters(tree.catalog_of(ROOT_INODE)[1]),
            STATUS_NAME: self._status,
        }
        self._of_inode: Mapping[str, Callable[[int], object]] = {
            _COUNTERS_NAME: self._catalog_counters,
            "user.hash": self._hash,
            "user.lhash": self._local_hash,
            "user.chunks": lambda inode: len(tree.objects(inode)) or None,
            "user.chunk_list": self._chunk_list,
            "user.compression": self._compression,
            "user.external_file": self._is_external,
            "user.external_url": self._external_url,
            "user.mica.local": self._local,
            _RAW_LINK: self._raw_link,
        }

    def get(self, inode: int, name: bytes) -> bytes | None:
        """The value of an attribute, None if there is none of that name. Raises OSError as the tree does."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        key = match[1].decode("ascii")
        if of_mount := self._of_mount.get(key):
            value = of_mount()
        elif of_inode := self._of_inode.get(key):
            value = of_inode(inode)
        else:
            return None
        if value is None:
            return None
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        return _page(text, match[2])

    def listed(self, inode: int) -> list[bytes]:
        """Names that a listing shows of an inode, as the stock client chooses them."""
        if self._visibility is Visibility.NEVER or (self._visibility is Visibility.ROOTONLY and inode != ROOT_INODE):
            return []
        mode = self._tree.attributes(inode).mode
        if stat.S_ISLNK(mode):  # Linux allows no others on links
            return [_RAW_LINK.encode("ascii")]
        names = {*self._of_mount, *(self._listed_of_file(inode) if stat.S_ISREG(mode) else [_COUNTERS_NAME])}
        return [name.encode("ascii") for name in sorted(names)]

    def _listed_of_file(self, inode: int) -> set[str]:
        """The names that have a value for this file; no content is read to find out."""
        _, row = self._tree.row_of(inode)
        names = set(self._of_inode) - {_RAW_LINK}
        if row.entry.digest is None:
            names -= {"user.hash", "user.lhash"}
        return names - ({"user.mica.local"} if row.entry.flags & Flag.EXTERNAL else {"user.external_url"})

    def _uptime_s(self) -> float:
        return time.monotonic() - self._state.started_at

    def _expires(self) -> object:
        if self._state.looks_again_at is None:
            return "never (fixed root catalog)"
        return max(0, int((self._state.looks_again_at - time.monotonic()) / 60))

    def _status(self) -> str:
        """Everything that `mica status` shows, in one answer."""
        manifest, backing, connection = self._state.manifest, self._state.backing, self._client.connection
        traffic = self._client.counter.read()
        status = MountStatus(
            fqrn=manifest.fqrn,
            revision=manifest.revision,
            root_catalog=manifest.root_catalog.text,
            root_catalog_size=manifest.root_catalog_size,
            published_at=manifest.published_at,
            follows=self._state.looks_again_at is not None,
            host=connection.host,
            proxy=connection.proxy or "",
            cache=os.path.abspath(self._client.cache.root),
            passthrough_refusal=NOT_WANTED if backing is None else backing.refusal,
            passthrough_from_bytes=0 if backing is None else backing.least_bytes,
            passthrough_open_files=0 if backing is None else len(backing),
            pid=os.getpid(),
            version=__version__,
            uptime_s=int(self._uptime_s()),
            requests=traffic.requests,
            transferred_bytes=traffic.transferred_bytes,
            objects_fetched=traffic.objects_fetched,
            files_opened=traffic.files_opened,
            io_errors=traffic.io_errors,
        )
        return format_status(status)

    def _catalog_counters(self, inode: int) -> str:
        digest, catalog = self._tree.catalog_of(inode)
        mountpoint = catalog.root_prefix.decode("utf-8", "surrogateescape") or "/"
        return f"catalog_hash: {digest}\ncatalog_mountpoint: {mountpoint}\n{_counters(catalog)}"

    def _whole(self, inode: int) -> ObjectName | None:
        """The one object that a file consists of, if it is not in chunks."""
        objects = self._tree.objects(inode)
        return objects[0] if len(objects) == 1 and objects[0].suffix is Suffix.FILE else None

    def _hash(self, inode: int) -> Digest | None:
        name = self._whole(inode)
        return None if name is None else name.digest

    def _local_hash(self, inode: int) -> object:
        name = self._whole(inode)
        if name is None:
            return None
        descriptor = self._client.open_local(name)
        if descriptor is None:
            return "Not in cache"
        with owned_fd(descriptor):
            return _hash_again(descriptor, name)

    def _chunk_list(self, inode: int) -> str | None:
        offset = 0
        lines = []
        for name in self._tree.objects(inode):
            lines.append(f"{name.digest},{offset},{name.size}\n")
            offset += name.size or 0
        return "hash,offset,size\n" + "".join(lines) if lines else None

    def _compression(self, inode: int) -> str | None:
        objects = self._tree.objects(inode)
        return objects[0].compression.config_name if objects else None

    def _is_external(self, inode: int) -> int | None:
        if not stat.S_ISREG(self._tree.attributes(inode).mode):
            return None
        return int(self._tree.external_path(inode) is not None)

    def _external_url(self, inode: int) -> bytes | None:
        host, path = self._client.external_host, self._tree.external_path(inode)
        return None if path is None or host is None else host.encode() + path

    def _local(self, inode: int) -> str | None:
        catalog, row = self._tree.row_of(inode)
        if not is_counted(row):
            return None
        return f"{find_local(self._client.cache, catalog, row).size_bytes} of {row.entry.size}"

    def _raw_link(self, inode: int) -> bytes | None:
        is_link = stat.S_ISLNK(self._tree.attributes(inode).mode)
        return self._tree.raw_target(inode) if is_link else None


def _counters(catalog: Catalog) -> str:
    """One line for each counter, with name and value; nested catalogs are included."""
    counters = catalog.counters()
    totals = {name: counters.get(f"self_{name}", 0) + counters.get(f"subtree_{name}", 0) for name in sorted(COUNTERS)}
    return "".join(f"{name},{value}\n" for name, value in totals.items())


def _page(value: bytes, number: bytes | None) -> bytes | None:
    """A value, or the page of it that is asked for (`~N` from 0 on, `~?` how many there are)."""
    pages = _pages(value)
    if number == b"?":
        return b"num_pages, %d" % len(pages)
    index = int(number or b"0")
    return pages[index] if index < len(pages) else None


def _pages(value: bytes) -> list[bytes]:
    pages = [b""]
    for line in value.splitlines(keepends=True):
        if pages[-1] and len(pages[-1]) + len(line) > _PAGE_BYTES:
            pages.append(b"")
        pages[-1] += line
    return pages


def _hash_again(descriptor: int, name: ObjectName) -> Digest:
    """The digest that the local copy would get if it were published again. Compressors differ: if one gives the
    object's digest, that is the answer; if none does, the answer is the stock client's."""
    algorithm = name.digest.algorithm
    if name.compression is Compression.NONE:
        return _hash_blocks(descriptor, algorithm, bytes, bytes)
    compressor = zlib.compressobj(LEVEL)
    found = _hash_blocks(descriptor, algorithm, compressor.compress, compressor.flush)
    if found == name.digest or os.fstat(descriptor).st_size > _PACK_LIMIT_BYTES:
        return found
    ours = pack(os.pread(descriptor, _PACK_LIMIT_BYTES, 0), algorithm, name.compression).digest
    return ours if ours == name.digest else found


def _hash_blocks(
    descriptor: int, algorithm: Algorithm, convert: Callable[[bytes], bytes], finish: Callable[[], bytes]
) -> Digest:
    hasher = new_hasher(algorithm)
    offset = 0
    while block := os.pread(descriptor, _BLOCK_BYTES, offset):
        hasher.update(convert(block))
        offset += len(block)
    hasher.update(finish())
    return hasher.finish()
