"""The node's cache: verified, decompressed content in a directory (docs/format/cache-dir.md).

    <root>/objects/ab/…        whole content, by local name (repo/localname.py)
    <root>/handover/ab/…       hand-overs: more links to some of it, for a moment (docs/design/dataplane.md)
    <root>/parts/…             large files while only some of their chunks are here (cache/partfiles.py)
    <root>/lists/…             chunk lists of large files, by their digest
    <root>/images/…            metadata images
    <root>/unsized/…           content whose size no catalog tells
    <root>/shown/…             what object filesystems show, by node number (cache/shown.py)
    <root>/txn/                where files are made, nameless until they are whole (O_TMPFILE)
    <root>/boot                the start of the machine in which the content was last known to be whole
    <root>/usage, held         how much of its quota is taken (ledger.py), and by removed files (removedfiles.py)

A file appears under its name only when it is whole and checked, and the kernel opens it there without asking a server.
Content needs a reservation before it comes in (`quota.py`), so that the cache never outgrows its quota. When the
machine has started again since the recorded start, files that a loss of power has cut are looked for first. Any
thread, any number of processes.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mica.cache.ledger import Limits
from mica.cache.quota import Quota, Reservation
from mica.digest import Digest
from mica.files import allocated_bytes, explained_os_error, mapped_os_errors, owned_fd, replace_file, write_all
from mica.logs import logger
from mica.repo.localname import LocalName
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression

if TYPE_CHECKING:
    from mica.cache.inventory import Kind

_log = logger(__name__)
_DIRECTORIES = ("objects", "handover", "parts", "lists", "images", "unsized", "shown", "txn")
# Names here do not tell the size, or the files are of use only to a running node.
_UNPROVEN = ("handover", "parts", "lists", "images", "unsized", "shown")
_RAW = ".raw"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TOUCH_S = 5.0
"""Half the time for which a use protects content from removal. To touch a file at every open would cost too much."""


class Cache:
    """`fresh_s`: how long what came in is safe from removal, in seconds, if not the standard."""

    def __init__(self, root: Path, *, fresh_s: "Mapping[Kind, float] | None" = None) -> None:
        self.root = root
        self._text = os.fspath(root)
        self._mending = threading.Lock()
        with mapped_os_errors(f"use the cache directory {self._text}"):
            _make_directories(root)
            self._boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
            recover(root, self._boot_id)
        self.quota = Quota(root, self._boot_id, fresh_s=fresh_s)
        self._seen = self._look()
        self.anywhere = os.open("/", os.O_PATH | os.O_CLOEXEC)

    def close(self) -> None:
        self.quota.close()
        os.close(self.anywhere)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserving(self, size: int) -> Reservation:
        """Room for content of this many bytes, for a block. If the cache's directory or a part of it was removed, it is
        made again. Raises UserError if there is no room."""
        if self._look() != self._seen:
            self._mend()
        return self.quota.reserving(size)

    def _look(self) -> tuple[int, ...] | None:
        """A value that changes when something was removed: the time of the directory changes, and most file systems
        count its directories, which shows also those that were removed within one tick of the clock."""
        try:
            status = os.stat(self._text)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino, status.st_nlink, status.st_mtime_ns

    def _mend(self) -> None:
        with self._mending, mapped_os_errors(f"use the cache directory {self._text}"):
            if _make_directories(self.root):
                _log.error(
                    "%s: the cache was removed while it is used, and is made again; running programs may get errors "
                    "for what they have not read yet", self.root,
                )  # fmt: skip
            if not _recovered_in(self.root):
                replace_file(self.root / "boot", self._boot_id.encode("ascii"), mode=0o600)
            self.quota.renew()
            self._seen = self._look()

    def path(self, name: LocalName) -> str:
        return f"{self._text}/objects/{name}"

    def place(self, name: ObjectName) -> str:
        """Path of an object's content, whose size may be unknown. The class of the object does not matter."""
        if name.size is not None:
            return self.path(LocalName(name.digest, name.compression, name.size))
        return f"{self._text}/unsized/{_unsized_name(name)}"

    def has(self, name: ObjectName) -> bool:
        """Whether `open` would find the content; changes nothing."""
        try:
            found = os.stat(self.place(name)).st_size
        except FileNotFoundError:
            return False
        return name.size is None or found == name.size

    def open(self, name: ObjectName) -> int | None:
        """A descriptor of the content, or None if it is not here."""
        return self.open_place(self.place(name), name.size)

    def open_place(self, path: str, size: int | None) -> int | None:
        """As `open`. A file of another size is damaged, and is removed."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        status = os.fstat(fd)
        if size is not None and status.st_size != size:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return None
        if time.time() - status.st_ctime > _TOUCH_S:
            os.utime(fd)
        return fd

    def touch(self, path: str) -> bool:
        """Whether the file is there. If it is, it counts as used now, and stays for a while."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def keep_bytes(self, path: Path, data: bytes) -> None:
        """Write a small file under its name, whole or not at all. Raises UserError, also if there is no room."""
        with self.reserving(len(data)) as room, mapped_os_errors(f"write to the cache {self._text}"):
            replace_file(path, data, mode=0o600, durable=False)
            room.keep(self.quota.blocks(len(data)))

    def name_file(self, fd: int, path: str) -> bool:
        """Give an open file a name. False if there is a file of that name already, which stays. Raises OSError."""

        def link() -> None:
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=self.anywhere, follow_symlinks=True)

        return link_into_fan(link, path)

    @contextlib.contextmanager
    def adding(self, name: ObjectName, room: Reservation | None = None) -> Iterator["NewFile"]:
        """Write content to `fd`, check it, then `commit`, or it vanishes. Without `room`, room is reserved
        as the file grows."""
        with self.adding_place(self.place(name), room) as new:
            yield new

    @contextlib.contextmanager
    def adding_place(self, path: str, room: Reservation | None = None) -> Iterator["NewFile"]:
        with contextlib.ExitStack() as stack:
            room = room or stack.enter_context(self.reserving(0))
            with mapped_os_errors(f"write to the cache {self._text}"):
                new = NewFile(self, path, room)
            stack.callback(new.close)
            yield new


def _unsized_name(name: ObjectName) -> str:
    return f"{name.digest.text}{_RAW if name.compression is Compression.NONE else ''}"


def parse_unsized_name(text: str) -> tuple[Digest, Compression]:
    """Of a file in `unsized`. Raises ValueError."""
    digest = Digest.parse(text.removesuffix(_RAW))
    return digest, Compression.NONE if text.endswith(_RAW) else Compression.ZLIB


class NewFile:
    """A nameless file that may become one of the cache's."""

    def __init__(self, cache: Cache, target: str, room: Reservation) -> None:
        self._cache = cache
        self._target = target
        self._room = room
        self._size = 0
        self.fd = os.open(f"{cache.root}/txn", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Raises UserError when there is no room."""
        self._size += len(data)
        self._room.cover(self._size)
        try:
            write_all(self.fd, data)
        except OSError as error:
            raise explained_os_error(error, f"write to the cache {self._cache.root}") from error

    def commit(self) -> int:
        """Give the file its name and return a descriptor that the caller owns."""
        with mapped_os_errors(f"write to the cache {self._cache.root}"):
            if self._cache.name_file(self.fd, self._target):
                self._room.keep(allocated_bytes(os.fstat(self.fd)))
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)


def _make_directories(root: Path) -> bool:
    """Returns whether any was missing."""
    missing = [root / name for name in _DIRECTORIES if not (root / name).is_dir()]
    for path in missing:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return bool(missing)


def set_limits(root: Path, most: int | None, keep_free: int | None) -> None:
    """Set limits in bytes for all users of a cache, 0 for none; None leaves one as it is. Raises UserError."""
    with Cache(root) as cache:
        now = cache.quota.limits
        cache.quota.set_limits(
            Limits(now.most if most is None else most, now.keep_free if keep_free is None else keep_free)
        )


def link_into_fan(link: Callable[[], None], target: str) -> bool:
    """Link a file to its name, in a directory that is made when it is first needed: making all 256 at once would cost
    an empty cache a tenth of a second. False if the name exists; its file stays."""
    try:
        link()
    except FileNotFoundError:
        Path(target).parent.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        return False
    else:
        return True
    try:
        link()
    except FileExistsError:
        return False
    return True


def recover(root: Path, boot_id: str) -> None:
    """Remove files that a loss of power may have cut, once after each start of the machine.

    Files get their names before their data reaches the disk, so after a crash a file may be shorter than its name says.
    It cannot be longer or have other bytes on a file system that writes data before the metadata that shows it (ext4
    with data=ordered, its default, XFS, btrfs).
    """
    if _recovered_in(root) == boot_id:
        return
    with owned_fd(os.open(root / ".recovery", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _recovered_in(root) == boot_id:
            return
        removed = _remove_cut_short(root / "objects")
        for name in _UNPROVEN:
            removed += _remove_files(root / name)
        if removed:
            _log.info("%s: %d files are removed that may be incomplete since the machine stopped", root, removed)
        replace_file(root / "boot", boot_id.encode("ascii"), mode=0o600)


def _recovered_in(root: Path) -> str:
    try:
        return (root / "boot").read_text(encoding="ascii")
    except FileNotFoundError:
        return ""


def _remove_cut_short(objects: Path) -> int:
    removed = 0
    for directory, _, names in os.walk(objects):
        for name in names:
            path = f"{directory}/{name}"
            if os.lstat(path).st_size != _size_of(path[len(os.fspath(objects)) + 1 :]):
                os.unlink(path)
                removed += 1
    return removed


def _size_of(text: str) -> int:
    try:
        return LocalName.parse(text).size
    except ValueError:
        return -1


def _remove_files(directory: Path) -> int:
    removed = 0
    for place, _, names in os.walk(directory):
        for name in names:
            os.unlink(f"{place}/{name}")
        removed += len(names)
    return removed
