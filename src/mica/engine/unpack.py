"""From a layer archive to a directory that a union can take as a layer, in one pass. The archive is hostile.

Every name is opened from the directory's descriptor by openat2(2) with RESOLVE_IN_ROOT: wherever links of the archive
point, the directory is the root, as in the chroot in which engines unpack. A later entry of a name replaces an earlier
one, as with `tar -x`; an entry beats a whiteout of its name, whichever comes first, as in `publish/layertree.py`.
After an error the directory is useless and the caller removes it. One thread.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mica import linux
from mica.engine.whiteouts import Whiteouts
from mica.errors import UserError
from mica.files import explained_os_error, mapped_os_errors, owned_fd, remove_tree, write_all
from mica.oci.layermembers import engine_time, is_aufs, path_parts
from mica.streams import Readable
from mica.tarstream import DEFAULT_LIMITS, Kind, TarEntry, TarLimits, read_tar
from mica.texts import quoted
from mica.union.layerview import Steps, TreeLevel, resolve
from mica.unionsigns import OPAQUE_MARKER, WHITEOUT_PREFIX, is_overlay_attribute, is_whiteout_name

_PIECE_BYTES = 1 << 20
_ZEROS = bytes(_PIECE_BYTES)
_HOLE_MIN_BYTES = 1 << 16
# Directories whose times wait for the end; about 100 bytes each.
_DIRECTORIES_MAX = 1 << 19
_AUFS_MAX = 1000
_IMPLIED_MODE = 0o755
_IMPLIED_MAX = 10_000
_STEPS_MAX = 10_000
"""The most steps on the way to one directory."""
_TYPES = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}


class Unpacked(NamedTuple):
    """`size_bytes`: of file content, a file of several names once. `has_root`: the archive has an entry for `/`.
    `implied`: directories for which it had neither an entry nor a sign."""

    size_bytes: int
    has_root: bool
    implied: frozenset[bytes]


def unpack_layer(
    stream: Readable, target: Path, whiteouts: Whiteouts, *, limits: TarLimits = DEFAULT_LIMITS
) -> Unpacked:
    """Unpack an archive into an empty directory. Raises UserError for members that cannot or must not be unpacked."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with owned_fd(os.open(target, flags)) as root, contextlib.closing(_Unpacker(root, whiteouts)) as unpacker:
        for entry in read_tar(stream, limits=limits, require_end=False):
            try:
                unpacker.add(entry)
            except OSError as error:
                raise explained_os_error(error, f"unpack {quoted(entry.name)}") from error
        with mapped_os_errors("finish unpacking the archive"):
            unpacker.finish()
        return Unpacked(unpacker.size_bytes, unpacker.has_root, frozenset(unpacker.implied))


class _Unpacker:
    def __init__(self, root: int, whiteouts: Whiteouts) -> None:
        self._root = root
        self._whiteouts = whiteouts
        self._parents: list[bytes] | None = None
        self._parent = -1
        self._times: dict[bytes, int] = {}
        self._aufs: set[bytes] = set()
        self.size_bytes = 0
        self.has_root = False
        self.implied: set[bytes] = set()

    def close(self) -> None:
        if self._parent >= 0:
            os.close(self._parent)
        self._parent = -1
        self._parents = None

    # Members

    def add(self, entry: TarEntry) -> None:
        parts = path_parts(entry.name)
        if not parts:
            self._set_root(entry)
            return
        *parents, name = parts
        if any(map(is_whiteout_name, parents)):
            raise UserError(f"Archive member {quoted(entry.name)} lies below a whiteout.")
        if is_aufs(parts):
            self._note_aufs(parts)
        directory = self._enter(parents)
        if name == OPAQUE_MARKER:
            with owned_fd(self._open(b"/".join(parents) or b".", os.O_RDONLY | os.O_DIRECTORY)) as fd:
                self._whiteouts.hide_below(fd)
        elif name.startswith(WHITEOUT_PREFIX) and not is_aufs(parts):
            self._remove(directory, parents, name[len(WHITEOUT_PREFIX) :], entry)
        else:
            self._put(directory, name, parts, entry)

    def _set_root(self, entry: TarEntry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise UserError(f"Archive member {quoted(entry.name)} would replace the root directory.")
        with owned_fd(self._open(b".", os.O_RDONLY | os.O_DIRECTORY)) as fd:
            _set_attributes(fd, entry)
        self._note_time(b".", entry)
        self.has_root = True

    def _remove(self, directory: int, parents: list[bytes], name: bytes, entry: TarEntry) -> None:
        if name in {b"", b".", b".."}:
            raise UserError(f"Archive member {quoted(entry.name)} is a whiteout that names no file.")
        before = _status(directory, name)
        if before is None:
            self._whiteouts.remove(directory, name)
        elif stat.S_ISDIR(before.st_mode):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            with owned_fd(os.open(name, flags, dir_fd=directory)) as fd:
                self._whiteouts.hide_below(fd)
            self.implied.discard(b"/" + b"/".join([*parents, name]))

    def _put(self, directory: int, name: bytes, parts: list[bytes], entry: TarEntry) -> None:
        if self._whiteouts.signs_are_devices and _is_device_zero(entry):
            raise UserError(
                f"Archive member {quoted(entry.name)} is a character device 0:0, which overlayfs takes for a deletion.",
                hint="Layers mark deletions by .wh. names.",
            )
        if len(name) > self._whiteouts.name_max_bytes:
            raise UserError(
                f"Archive member {quoted(entry.name)} has a name of {len(name)} bytes; AUFS can use"
                f" {self._whiteouts.name_max_bytes}."
            )
        was_removed = self._whiteouts.restore(directory, name)
        if entry.kind is Kind.DIRECTORY:
            self._put_directory(directory, name, parts, entry, hides_below=was_removed)
            return
        if entry.kind is Kind.HARDLINK:
            self._link(directory, name, entry)
            return
        self._clear(directory, name)
        if entry.kind is Kind.REGULAR:
            self._put_file(directory, name, entry)
            return
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.link, name, dir_fd=directory)
        else:
            device = os.makedev(entry.device_major, entry.device_minor) if entry.kind is not Kind.FIFO else 0
            os.mknod(name, _TYPES[entry.kind], device, dir_fd=directory)
        os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            os.chmod(name, entry.mode & 0o7777, dir_fd=directory)
        _set_xattrs(f"/proc/self/fd/{directory}/".encode() + name, entry)
        os.utime(name, ns=_times(entry), dir_fd=directory, follow_symlinks=False)

    def _put_directory(
        self, directory: int, name: bytes, parts: list[bytes], entry: TarEntry, *, hides_below: bool
    ) -> None:
        before = _status(directory, name)
        if before is None or not stat.S_ISDIR(before.st_mode):
            self._clear(directory, name)
            os.mkdir(name, 0o700, dir_fd=directory)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with owned_fd(os.open(name, flags, dir_fd=directory)) as fd:
            _set_attributes(fd, entry)
            if hides_below:
                self._whiteouts.hide_below(fd)
        path = b"/".join(parts)
        self.implied.discard(b"/" + path)
        self._note_time(path, entry)

    def _put_file(self, directory: int, name: bytes, entry: TarEntry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with owned_fd(os.open(name, flags, 0o600, dir_fd=directory)) as fd:
            if entry.size:
                _copy(entry, fd)
                self.size_bytes += entry.size
            _set_attributes(fd, entry)
            os.utime(fd, ns=_times(entry))

    def _link(self, directory: int, name: bytes, entry: TarEntry) -> None:
        *parents, last = path_parts(entry.link) or [b""]
        refusal = UserError(
            f"Archive member {quoted(entry.name)} is a hard link to {quoted(entry.link)}, which is no earlier file of"
            " this archive."
        )
        try:
            source = self._open(b"/".join(parents) or b".", os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError as error:
            raise refusal from error
        with owned_fd(source):
            status = _status(source, last) if last else None
            if status is None or stat.S_ISDIR(status.st_mode) or self._whiteouts.removed_name(last, status) is not None:
                raise refusal
            before = _status(directory, name)
            if before is not None and os.path.samestat(before, status):
                return
            self._clear(directory, name)
            os.link(last, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)

    # Directories

    def _open(self, path: bytes, flags: int, *, resolve: int = linux.RESOLVE_IN_ROOT) -> int:
        return linux.openat2(self._root, path, flags, resolve=resolve | linux.RESOLVE_NO_MAGICLINKS)

    def _enter(self, parents: list[bytes]) -> int:
        """The directory of a member, made if the archive has not brought it (yet)."""
        if parents != self._parents:
            self.close()
            self._parent = self._open_or_make(parents)
            self._parents = parents
        return self._parent

    def _open_or_make(self, parts: list[bytes]) -> int:
        missing: list[bytes] = []
        while True:
            try:
                fd = self._open(b"/".join(parts) or b".", os.O_PATH | os.O_DIRECTORY)
                break
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise UserError(f"{quoted(b'/'.join(parts))} leads through too many links.") from error
                if error.errno == errno.ENOTDIR and self._unhide(parts):
                    continue
                if error.errno != errno.ENOENT or not parts:
                    raise
            if not missing and (real := self._real(parts)) != parts:
                return self._open_or_make(real)
            *parts, last = parts
            missing.append(last)
        path = b"".join(b"/" + part for part in parts)
        for name in reversed(missing):
            path += b"/" + name
            try:
                hides_below = self._whiteouts.restore(fd, name)
                inner = self._make_implied(fd, name, hides_below=hides_below)
            finally:
                os.close(fd)
            fd = inner
            if not hides_below and len(self.implied) < _IMPLIED_MAX:
                self.implied.add(path)
        return fd

    def _real(self, parts: list[bytes]) -> list[bytes]:
        """The same path with the archive's links resolved; some may lead to directories of lower layers only."""
        level = TreeLevel(b"/proc/self/fd/%d/." % self._root, Steps(_STEPS_MAX))
        return path_parts(resolve((level,), b"/" + b"/".join(parts)))

    def _make_implied(self, directory: int, name: bytes, *, hides_below: bool) -> int:
        os.mkdir(name, _IMPLIED_MODE, dir_fd=directory)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=directory)
        try:
            os.fchmod(fd, _IMPLIED_MODE)
            if hides_below:
                self._whiteouts.hide_below(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _unhide(self, parts: list[bytes]) -> bool:
        """If there is a whiteout where a directory is needed, make an opaque directory of it."""
        for depth in range(1, len(parts) + 1):
            with owned_fd(self._open(b"/".join(parts[: depth - 1]) or b".", os.O_PATH | os.O_DIRECTORY)) as fd:
                name = parts[depth - 1]
                if self._whiteouts.restore(fd, name):
                    os.close(self._make_implied(fd, name, hides_below=True))
                    return True
                status = _status(fd, name)
                if status is None or not (stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                    return False
        return False

    def _clear(self, directory: int, name: bytes) -> None:
        """Make room for an entry."""
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            # Under another name, so that no later member can reach the directory that is being removed.
            doomed = f".wh..wh.{secrets.token_hex(8)}"
            os.rename(name, doomed, src_dir_fd=directory, dst_dir_fd=self._root)
            remove_tree(Path(f"/proc/self/fd/{self._root}/{doomed}"))

    # After the last member

    def _note_time(self, path: bytes, entry: TarEntry) -> None:
        if len(self._times) >= _DIRECTORIES_MAX:
            raise UserError(f"The archive has more than {_DIRECTORIES_MAX} directories.")
        self._times[path] = _times(entry)[1]

    def _note_aufs(self, parts: list[bytes]) -> None:
        for depth, part in enumerate(parts):
            if is_aufs([part]):
                self._aufs.add(b"/".join(parts[: depth + 1]))
                break
        if len(self._aufs) > _AUFS_MAX:
            raise UserError("The archive has too many files of AUFS's own.")

    def finish(self) -> None:
        """Remove AUFS's own files, which hard links could name until now, set the times of directories, and forget the
        implied directories that were replaced."""
        self.close()
        for path in self._aufs:
            parent, _, name = path.rpartition(b"/")
            with self._still_there(parent or b".", os.O_PATH | os.O_DIRECTORY) as directory:
                if directory is not None:
                    self._clear(directory, name)
        for path, time_ns in self._times.items():
            with self._still_there(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
                if fd is not None:
                    os.utime(fd, ns=(time_ns, time_ns))
        self.implied = {path for path in self.implied if self._is_directory(path[1:])}

    def _is_directory(self, path: bytes) -> bool:
        """Whether there is one in this place itself, by way of no link."""
        resolve = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS
        with self._still_there(path, os.O_PATH | os.O_DIRECTORY, resolve=resolve) as fd:
            return fd is not None

    @contextlib.contextmanager
    def _still_there(self, path: bytes, flags: int, *, resolve: int = linux.RESOLVE_IN_ROOT) -> Iterator[int | None]:
        """A directory, unless something else has replaced it since, even a link to itself."""
        try:
            fd = self._open(path, flags, resolve=resolve)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise
            yield None
            return
        with owned_fd(fd):
            yield fd


def _is_device_zero(entry: TarEntry) -> bool:
    return entry.kind is Kind.CHARACTER and entry.device_major == entry.device_minor == 0


def _status(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _copy(entry: TarEntry, fd: int) -> None:
    """Content into a new file; long runs of zeros become holes."""
    while piece := entry.read(_PIECE_BYTES):
        if len(piece) >= _HOLE_MIN_BYTES and piece == (_ZEROS if len(piece) == _PIECE_BYTES else bytes(len(piece))):
            os.lseek(fd, len(piece), os.SEEK_CUR)
        else:
            write_all(fd, piece)
    os.ftruncate(fd, entry.size)


def _set_attributes(fd: int, entry: TarEntry) -> None:
    # Changing the owner takes set-user-ID bits and capabilities away.
    os.fchown(fd, entry.uid, entry.gid)
    os.fchmod(fd, entry.mode & 0o7777)
    if entry.xattrs:
        _set_xattrs(fd, entry)


def _set_xattrs(where: int | bytes, entry: TarEntry) -> None:
    setxattr: Callable[[bytes, bytes], None]
    if isinstance(where, int):

        def setxattr(key: bytes, value: bytes) -> None:
            os.setxattr(where, key, value)

    else:

        def setxattr(key: bytes, value: bytes) -> None:
            os.setxattr(where, key, value, follow_symlinks=False)

    for key, value in entry.xattrs.items():
        if is_overlay_attribute(key):
            continue
        try:
            setxattr(key, value)
        except OSError as error:
            # Attributes that this file system cannot hold are left out, as by engines; links and devices have no user.*
            # (xattr(7)).
            if error.errno not in {errno.EOPNOTSUPP, errno.EPERM}:
                raise


def _times(entry: TarEntry) -> tuple[int, int]:
    seconds, nanoseconds = engine_time(entry)
    time_ns = seconds * 1_000_000_000 + nanoseconds
    return time_ns, time_ns
