"""The node's cache: verified, decompressed content in a directory (docs/format/cache-dir.md).

    <root>/objects/ab/…        whole content, by local name (repo/localname.py)
    <root>/handover/ab/…       more links to some of it, for a moment (docs/design/dataplane.md)
    <root>/parts/…             large files while only some of their chunks are here (fetch/parts.py)
    <root>/lists/…             chunk lists of large files, by their digest
    <root>/images/…            metadata images
    <root>/unsized/…           content whose size no catalog tells
    <root>/txn/                where files are made, nameless until they are whole (O_TMPFILE)
    <root>/repositories/<fqrn> the newest verified manifest and what verified it
    <root>/boot                which start of the machine the content was last known to be whole in
    <root>/usage, held         how much of its quota is taken (fetch/ledger.py), and by what cannot be seen (held.py)

A file appears under its name only when it is whole and checked, and the kernel opens it there without asking anybody.
What is to come in has a reservation first (`quota.py`), so that the cache never outgrows its quota. After a start of
the machine that is not the recorded one, files that lost their tail with the power are looked for first. Any thread,
any number of processes.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mica.digest import Digest
from mica.errors import UserError
from mica.fetch.ledger import Limits
from mica.fetch.quota import Quota, Reservation
from mica.files import allocated_bytes, explained_os_error, mapped_os_errors, owned_fd, replace_file, write_all
from mica.logs import logger
from mica.repo.localname import LocalName
from mica.repo.objects import Compression

if TYPE_CHECKING:
    from mica.fetch.inventory import Kind

_log = logger(__name__)
_DIRECTORIES = ("objects", "handover", "parts", "lists", "images", "unsized", "txn", "repositories")
# Their names do not tell the size, or they are of use to a running node only.
_UNPROVEN = ("handover", "parts", "lists", "images", "unsized")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TOUCH_S = 5.0
"""Half of what protects content that was asked for from removal: a touch in every open would be dear."""


class Cache:
    """`fresh_s`: how long what came in is safe from removal, in seconds, if not the standard."""

    def __init__(self, root: Path, *, fresh_s: "Mapping[Kind, float] | None" = None) -> None:
        self.root = root
        self._text = os.fspath(root)
        with mapped_os_errors(f"use the cache directory {self._text}"):
            for name in _DIRECTORIES:
                (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
            recover(root, boot_id)
        self.quota = Quota(root, boot_id, fresh_s=fresh_s)
        self.anywhere = os.open("/", os.O_PATH | os.O_CLOEXEC)

    def close(self) -> None:
        self.quota.close()
        os.close(self.anywhere)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, name: LocalName) -> str:
        return f"{self._text}/objects/{name}"

    def place(self, digest: Digest, compression: Compression, size: int | None) -> str:
        """Path of an object's content, whose size may be unknown."""
        if size is not None:
            return self.path(LocalName(digest, compression, size))
        return f"{self._text}/unsized/{digest.text}{'.raw' if compression is Compression.NONE else ''}"

    def has(self, digest: Digest, compression: Compression, size: int | None) -> bool:
        """Whether `open` would find the content; changes nothing."""
        try:
            found = os.stat(self.place(digest, compression, size)).st_size
        except FileNotFoundError:
            return False
        return size is None or found == size

    def open(self, digest: Digest, compression: Compression, size: int | None) -> int | None:
        """A descriptor of the content, or None if it is not here."""
        return self.open_place(self.place(digest, compression, size), size)

    def open_place(self, path: str, size: int | None) -> int | None:
        """As `open`. A file of another size, which somebody damaged, is removed."""
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
        """Whether the file is there; then it counts as used now, and stays for a while."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def account(self, path: str) -> None:
        """Count a file that was given its name otherwise than by `NewFile.commit`. Raises UserError, and removes the
        file, if there is no room for it."""
        try:
            self.quota.admit(allocated_bytes(os.stat(path)))
        except FileNotFoundError:
            pass
        except UserError:
            os.unlink(path)
            raise

    def name_file(self, fd: int, path: str) -> bool:
        """Give an open file a name; one that is there already stays, and is told by False. Raises OSError."""

        def link() -> None:
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=self.anywhere, follow_symlinks=True)

        return link_into_fan(link, path)

    @contextlib.contextmanager
    def adding(
        self, digest: Digest, compression: Compression, size: int | None, room: Reservation | None = None
    ) -> Iterator["NewFile"]:
        """Write content to `fd`, check it, then `commit`; what is not committed vanishes. Without `room` it is reserved
        as the file grows."""
        with self.adding_place(self.place(digest, compression, size), room) as new:
            yield new

    @contextlib.contextmanager
    def adding_place(self, path: str, room: Reservation | None = None) -> Iterator["NewFile"]:
        with contextlib.ExitStack() as stack:
            room = room or stack.enter_context(self.quota.reserving(0))
            with mapped_os_errors(f"write to the cache {self._text}"):
                new = NewFile(self, path, room)
            stack.callback(new.close)
            yield new


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


def set_limits(root: Path, most: int | None, keep_free: int | None) -> None:
    """Limits in bytes for all who use a cache from now on, 0 for none; None leaves one as it is. Raises UserError."""
    with Cache(root) as cache:
        now = cache.quota.limits
        cache.quota.set_limits(
            Limits(now.most if most is None else most, now.keep_free if keep_free is None else keep_free)
        )


def link_into_fan(link: Callable[[], None], target: str) -> bool:
    """Link a file to its name, in a directory that is made when it is first needed: all 256 at once would cost an empty
    cache a tenth of a second. A name that exists stays what it is: False."""
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
    """Remove what a loss of power may have left without its tail, once in each life of the machine.

    The names are given before the data reaches the disk, so after a crash a file may be shorter than its name says;
    longer or other bytes it cannot have on a file system that writes data before the metadata that shows it (ext4 with
    data=ordered, its default, XFS, btrfs).
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
            _log.info("%s: %d files that the machine's last life left are removed", root, removed)
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
