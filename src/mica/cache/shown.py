"""Which content the object filesystems over a cache show, by node number. A number means one content for as long as the
kernel may use it, and content that a program has open stays in the cache.

    <cache>/shown/<id>      one journal for each mounted object filesystem

The kernel opens and closes files of an object filesystem without asking (`dataplane/objectfs.py`). It reports only each
lookup, which it counts, and each FORGET, which gives lookups back. While the count of a node number is above 0, a
program may have the file open or mapped. The journal keeps name and count of each number that was ever shown, on disk,
because the process that serves the mount may be killed at any step. A number is never given to a second name.

A journal counts while a process holds a shared `flock` on it: the one that keeps the mount alive does. One process at a
time writes (`ShownFiles`); any process may read (`ShownNames`). Byte tables: docs/format/cache-dir.md. Any thread.
"""

import array
import contextlib
import errno
import fcntl
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from mica import linux
from mica.errors import IntegrityError
from mica.files import owned_fd
from mica.logs import logger
from mica.mountinfo import mount_number, read_mounts_of
from mica.repo.localname import LocalName

ANY_DIRECTORY: Final = "any"
"""Name in the root of an object filesystem: below it is the content of all repositories."""
_log = logger(__name__)
_MAGIC: Final = 0x6D69636153480001
_HEADER = struct.Struct("<QQIIIH")
_PATH_BYTES_MAX: Final = 2048
_HEADER_BYTES: Final = 4096
_RECORD_BYTES: Final = 128
_RECORD = struct.Struct("<QHH")
_NUMBER_BITS: Final = 58
_COUNT = struct.Struct("<Q")
_REMEMBERED: Final = 4096
_DOUBT_S: Final = 1.0
_SETTLE_S: Final = 0.005
_SETTLE_TRIES: Final = 40


class Shown(NamedTuple):
    """A file that is shown: its content, and the number of the repository from which it is fetched."""

    name: LocalName
    repository: int


def begin_journal(cache: Path) -> tuple[str, int]:
    """A new journal: its id, and a descriptor with the lock that keeps it. The caller closes the descriptor.

    Numbers begin at a random place, so that the numbers of a lost journal are not given to other content. Journals that
    no process keeps any more are removed. Raises OSError.
    """
    with ShownNames(cache) as shown:
        shown.clean()
    fd = os.open(cache / "shown", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        os.pwrite(fd, _HEADER.pack(_MAGIC, secrets.randbits(_NUMBER_BITS), 0, 0, 0, 0).ljust(_HEADER_BYTES, b"\0"), 0)
        name = secrets.token_hex(8)
        _give_name(fd, cache / "shown" / name)
    except BaseException:
        os.close(fd)
        raise
    return name, fd


def keep_journal(cache: Path, name: str) -> int | None:
    """A descriptor with the lock that keeps a journal; None if there is no such journal. Raises OSError."""
    try:
        fd = os.open(cache / "shown" / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    except BaseException:
        os.close(fd)
        raise
    if os.fstat(fd).st_nlink == 0:
        os.close(fd)
        return None
    return fd


def is_removed(fd: int) -> bool:
    """Whether a journal was removed, for example with its cache."""
    return not os.fstat(fd).st_nlink


def renew_journal(cache: Path, name: str, fd: int) -> None:
    """Put back a journal that was removed, behind the same descriptor. Only while no process writes it. Raises
    OSError."""
    with owned_fd(os.open(cache / "shown", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)) as copy:
        fcntl.flock(copy, fcntl.LOCK_SH)
        offset = 0
        while data := os.pread(fd, _RECORD_BYTES << 10, offset):
            offset += os.pwrite(copy, data, offset)
        _give_name(copy, cache / "shown" / name)
        os.dup2(copy, fd, inheritable=False)


class ShownFiles:
    """The journal of one mount, for the process that serves it. Waits for a predecessor that has not ended yet.

    `fd` comes from `begin_journal` or `keep_journal` and stays the caller's. `place` is where the file system is
    mounted, in the caller's mount namespace. Raises IntegrityError for a file that is no journal.
    """

    def __init__(self, fd: int, place: Path) -> None:
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            _lock_for_writing(self._fd)
            self._first = self._take_over(place)
            self._counts = array.array("Q")
            self._numbers: dict[bytes, int] = {}
            self._load()
        except BaseException:
            os.close(self._fd)
            raise
        self._lock = threading.Lock()
        self._remembered: dict[int, Shown] = {}
        # Node numbers whose count may be too high because a server was killed in the middle, and since when.
        now = time.monotonic()
        self._doubtful = {position: now for position, count in enumerate(self._counts) if count}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def show(self, shown: Shown) -> int:
        """The number of a file, for the answer to a lookup; it counts as known to the kernel from now on."""
        key = _key(shown)
        with self._lock:
            position = self._numbers.get(key)
            if position is None:
                position = len(self._counts)
                os.pwrite(self._fd, (_COUNT.pack(1) + key).ljust(_RECORD_BYTES, b"\0"), _offset(position))
                self._counts.append(1)
                self._numbers[key] = position
            else:
                self._set(position, self._counts[position] + 1)
                if position in self._doubtful:
                    self._doubtful[position] = time.monotonic()
        return self._first + position

    def is_known(self, shown: Shown) -> bool:
        """Whether the kernel may know the file under its number."""
        position = self._numbers.get(_key(shown))
        return position is not None and self._counts[position] > 0

    def find(self, number: int) -> Shown | None:
        """The file of a number; None for a number that was never given."""
        position = number - self._first
        if not 0 <= position < len(self._counts):
            return None
        shown = self._remembered.get(position)
        if shown is None:
            shown = _parse(os.pread(self._fd, _RECORD_BYTES, _offset(position)))
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[position] = shown
        return shown

    def forget(self, number: int, lookups: int) -> None:
        """The kernel gives lookups back, or did not get an answer that was counted."""
        position = number - self._first
        with self._lock:
            if not 0 <= position < len(self._counts):
                return
            left = max(0, self._counts[position] - lookups)
            self._set(position, left)
            if left:
                self._doubtful[position] = time.monotonic()
            else:
                self._doubtful.pop(position, None)

    def settle(self, is_known: Callable[[int], bool]) -> None:
        """Correct counts that are too high: by asking the kernel whether it knows the number, some time after the last
        lookup, whose answer it has taken by then."""
        limit = time.monotonic() - _DOUBT_S
        with self._lock:
            old = [position for position, since in self._doubtful.items() if since <= limit]
        for position in old:
            known = is_known(self._first + position)
            with self._lock:
                if self._doubtful.get(position, limit + 1) <= limit:
                    del self._doubtful[position]
                    if not known:
                        self._set(position, 0)

    def _set(self, position: int, count: int) -> None:
        self._counts[position] = count
        os.pwrite(self._fd, _COUNT.pack(count), _offset(position))

    def _take_over(self, place: Path) -> int:
        """Say who serves the mount now; returns the first number."""
        first = _first_number(self._fd)
        device = linux.mounted_device(place) or (0, 0)
        path = os.fsencode(place)
        if len(path) > _PATH_BYTES_MAX:
            device, path = (0, 0), b""
        os.pwrite(self._fd, _HEADER.pack(_MAGIC, first, *device, os.getpid(), len(path)) + path, 0)
        return first

    def _load(self) -> None:
        for position, record in enumerate(_records(self._fd, 0)):
            self._counts.append(_COUNT.unpack_from(record)[0])
            self._numbers[_key_of(record)] = position


class ShownNames:
    """The files that the kernel may know in the object filesystems over a cache; removal asks it. One thread at a time.

    Journals that no process keeps are removed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._journals: dict[str, _Journal] = {}

    def close(self) -> None:
        for journal in self._journals.values():
            journal.close()
        self._journals.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, name: LocalName) -> bool:
        """Whether a program may have this content open through an object filesystem."""
        return any(journal.has(str(name).encode("ascii")) for journal in self._living())

    def names(self) -> set[LocalName]:
        """All such content."""
        return {LocalName.parse(text.decode("ascii")) for journal in self._living() for text in journal.known()}

    def places(self) -> set[bytes]:
        """Where the object filesystems are mounted, each in the mount namespace of its session."""
        return {place for journal in self._living() if (place := journal.place())}

    def clean(self) -> None:
        """Remove the journals that no process keeps."""
        for _ in self._living():
            pass

    def let_go(self) -> None:
        """Make the kernel forget files that no program has open. Errors are ignored."""
        reached = [journal for journal in self._living() if journal.count() and journal.shrink()]
        before = -1
        for _ in range(_SETTLE_TRIES):
            # FORGET has no answer: the session that serves the mount counts it as soon as it comes.
            now = sum(journal.count() for journal in reached)
            if now in {0, before}:
                return
            before = now
            time.sleep(_SETTLE_S)

    def _living(self) -> "Iterator[_Journal]":
        directory = self._root / "shown"
        try:
            found = set(os.listdir(directory))
        except FileNotFoundError:
            found = set()
        for name in self._journals.keys() - found:
            self._journals.pop(name).close()
        for name in sorted(found - self._journals.keys()):
            with contextlib.suppress(FileNotFoundError):
                self._journals[name] = _Journal(directory / name)
        for name, journal in list(self._journals.items()):
            if journal.is_kept():
                yield journal
            else:
                self._journals.pop(name).close()
                (directory / name).unlink(missing_ok=True)


class _Journal:
    """One journal, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._positions: dict[bytes, list[int]] = {}
        self._read = 0

    def close(self) -> None:
        os.close(self._fd)

    def is_kept(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def has(self, text: bytes) -> bool:
        self._read_on()
        return self._is_known(self._positions.get(text, []))

    def known(self) -> list[bytes]:
        self._read_on()
        return [text for text, positions in self._positions.items() if self._is_known(positions)]

    def count(self) -> int:
        return sum(_COUNT.unpack_from(record)[0] > 0 for record in _records(self._fd, 0))

    def place(self) -> bytes:
        """Where the mount is; empty for one that cannot be reached."""
        try:
            return self._mount()[-1]
        except struct.error:
            return b""

    def _mount(self) -> tuple[tuple[int, int], int, bytes]:
        """Device, process of the session, and path. Raises OSError, and struct.error if the journal is too short."""
        _, _, major, minor, pid, length = _HEADER.unpack(os.pread(self._fd, _HEADER.size, 0))
        return (major, minor), pid, os.pread(self._fd, length, _HEADER.size)

    def shrink(self) -> bool:
        """Make the kernel drop all unused names: to reconfigure a file system does (`shrink_dcache_sb` in
        reconfigure_super(), fs/super.c). The mount may be in another mount namespace, that of the session."""
        try:
            device, pid, path = self._mount()
            if not path:
                return False
            with owned_fd(os.open(f"/proc/{pid}/root{os.fsdecode(path)}", os.O_PATH | os.O_CLOEXEC)) as fd:
                if _device_of(fd, pid) != device:
                    return False
                with owned_fd(linux.fspick(fd)) as context:
                    linux.fsconfig_flag(context, "ro")
                    linux.fsconfig_reconfigure(context)
        except (OSError, struct.error) as error:
            _log.debug("an object filesystem cannot be made to drop unused names: %s", error)
            return False
        return True

    def _read_on(self) -> None:
        for record in _records(self._fd, self._read):
            self._positions.setdefault(_key_of(record)[_RECORD.size - _COUNT.size :], []).append(self._read)
            self._read += 1

    def _is_known(self, positions: list[int]) -> bool:
        return any(self._count_at(position) for position in positions)

    def _count_at(self, position: int) -> int:
        data = os.pread(self._fd, _COUNT.size, _offset(position))
        return _COUNT.unpack(data)[0] if len(data) == _COUNT.size else 0


def _give_name(fd: int, path: Path) -> None:
    with owned_fd(os.open("/", os.O_PATH | os.O_CLOEXEC)) as anywhere:
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=anywhere, follow_symlinks=True)


def _device_of(fd: int, process: int) -> tuple[int, int] | None:
    """The device of an O_PATH descriptor's file system, from the mount table of a process. The file system itself may
    be dead, so it is not asked."""
    number = mount_number(fd)
    return next((mount.device for mount in read_mounts_of(str(process)) if mount.number == number), None)


def _key(shown: Shown) -> bytes:
    text = str(shown.name).encode("ascii")
    return _RECORD.pack(0, shown.repository, len(text))[_COUNT.size :] + text


def _key_of(record: bytes) -> bytes:
    length = _RECORD.unpack_from(record)[2]
    return record[_COUNT.size : _RECORD.size + length]


def _parse(record: bytes) -> Shown:
    _, repository, length = _RECORD.unpack_from(record)
    return Shown(LocalName.parse(record[_RECORD.size : _RECORD.size + length].decode("ascii")), repository)


def _offset(position: int) -> int:
    return _HEADER_BYTES + position * _RECORD_BYTES


def _records(fd: int, position: int) -> Iterator[bytes]:
    """All whole records from a position on."""
    while data := os.pread(fd, _RECORD_BYTES << 10, _offset(position)):
        whole = len(data) // _RECORD_BYTES
        for number in range(whole):
            yield data[number * _RECORD_BYTES : (number + 1) * _RECORD_BYTES]
        if not whole:
            return
        position += whole


def _first_number(fd: int) -> int:
    data = os.pread(fd, _HEADER.size, 0)
    if len(data) < _HEADER.size or _HEADER.unpack(data)[0] != _MAGIC:
        raise IntegrityError("The journal of an object filesystem in the cache is damaged.")
    return int(_HEADER.unpack(data)[1])


def _lock_for_writing(fd: int) -> None:
    """Wait until a predecessor has ended: two writers would give the same number to two names."""
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, linux.FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        except OSError as error:
            if error.errno != errno.EINTR:
                raise
        else:
            return
