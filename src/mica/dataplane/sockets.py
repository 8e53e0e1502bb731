"""Datagrams between processes of one machine: sockets 0600 in a directory, whatever the length of its path. Any thread.

Unix sockets have 108 bytes for a path (unix(7)), and paths of users' directories can be longer. So a socket is always
named through a descriptor of its directory.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mica.files import owned_fd

MESSAGE_MAX_BYTES = 1 << 20
_BACKLOG = 64


@contextlib.contextmanager
def listening(
    path: Path, *, kind: socket.SocketKind = socket.SOCK_SEQPACKET, is_kept: bool = False
) -> Iterator[socket.socket]:
    """A socket that takes connections at this path; a file that a predecessor left there is replaced. Its file is
    removed with the block, unless it is kept for another process that got the socket."""
    with _short_path(path) as short, socket.socket(socket.AF_UNIX, kind) as server:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            server.bind(short)
        finally:
            os.umask(before)
        server.listen(_BACKLOG)
        inode = path.stat().st_ino
        try:
            yield server
        finally:
            with contextlib.suppress(FileNotFoundError):
                if not is_kept and path.stat().st_ino == inode:
                    path.unlink()


def connect(path: Path) -> socket.socket:
    """Raises OSError if nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # A message has to fit into the buffer as a whole.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_MAX_BYTES)
        with _short_path(path) as short:
            connection.connect(short)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    with owned_fd(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        yield f"/proc/self/fd/{fd}/{path.name}"
