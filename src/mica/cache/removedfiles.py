"""Files that were removed from a cache while something held them: their space is not free yet.

    <cache>/held        one a line: <bytes> <hex of the file handle>

A union that once opened a file keeps its inode for as long as it remembers the file itself (docs/design/cache.md), and
so does a program that has it open. No name leads there any more, but the handle of open_by_handle_at(2) does until the
inode is gone. Only for the process that removes content, one at a time. Without the right to open by handle every
removed file counts as gone.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mica import linux
from mica.files import owned_fd, replace_file

# ENOMEM is what ext4 says while its number is being given to a new file (iget_locked() meets I_CREATING, fs/inode.c).
_GONE = {errno.ESTALE, errno.ENOENT, errno.ENOMEM}
_NO_HANDLES = {errno.EOPNOTSUPP, errno.EPERM, errno.EOVERFLOW, errno.ENOSYS}


class RemovedFiles:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / "held"

    def handle(self, fd: int) -> bytes:
        """A handle that shows later whether the file lives on; empty where there are none."""
        try:
            return linux.name_to_handle(fd)
        except OSError as error:
            if error.errno in _NO_HANDLES:
                return b""
            raise

    def is_held(self, handle: bytes) -> bool:
        """Whether something holds a file whose last name was removed and that we have closed."""
        if not handle:
            return False
        try:
            with (
                owned_fd(os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as place,
                owned_fd(linux.open_by_handle(place, handle, os.O_PATH)) as fd,
            ):
                return os.fstat(fd).st_nlink == 0
        except OSError as error:
            if error.errno in _GONE | _NO_HANDLES:
                return False
            raise

    def add(self, handle: bytes, size: int) -> None:
        with owned_fd(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)) as fd:
            os.write(fd, f"{size} {handle.hex()}\n".encode("ascii"))

    def total(self) -> int:
        """How many bytes are still held."""
        self.forget_gone()
        return sum(size for size, _ in self._read())

    def forget_gone(self) -> int:
        """Forget files that are not held any more, and return their bytes."""
        listed = list(self._read())
        held = [(size, handle) for size, handle in listed if self.is_held(handle)]
        if len(held) != len(listed):
            text = "".join(f"{size} {handle.hex()}\n" for size, handle in held)
            replace_file(self._path, text.encode("ascii"), mode=0o600, durable=False)
        return sum(size for size, _ in listed) - sum(size for size, _ in held)

    def _read(self) -> Iterator[tuple[int, bytes]]:
        try:
            lines = self._path.read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            size, _, handle = line.partition(" ")
            try:
                yield int(size), bytes.fromhex(handle)
            except ValueError:  # cut off by a kill
                continue
