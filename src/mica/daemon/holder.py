"""The holder: a tiny program that keeps the object filesystem's descriptor while no session serves it.

    python3 holder.py <listening socket fd> <FUSE fd> <deadline, seconds>

The kernel's requests wait as long as the descriptor is open. A process that connects to the socket gets the descriptor
(SCM_RIGHTS) and counts as the server until it hangs up. If no successor connects within the deadline, the holder
answers every request with EIO until one does, so that programs fail instead of waiting for ever. The message `quit`
ends the holder.

It imports nothing of ours and only what it needs: it lives as long as containers do, and its only cost is its memory.
Layouts and numbers: include/uapi/linux/fuse.h.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import sys
import time

_IN_HEADER = struct.Struct("<IIQ")
_OUT_HEADER = struct.Struct("<IiQ")
_UNANSWERED = {2, 36, 41, 42}  # FORGET, INTERRUPT, NOTIFY_REPLY, BATCH_FORGET
_RESEND = _OUT_HEADER.pack(_OUT_HEADER.size, 7, 0)  # FUSE_NOTIFY_RESEND: what the server took and did not answer
_REQUEST_BYTES = 1 << 17
_READ_S = 0.2
_GONE = {errno.ENODEV, errno.ECONNABORTED}


class Holder:
    """One descriptor, and the connections of the processes that serve it."""

    def __init__(self, listener: socket.socket, fuse: int, deadline_s: float) -> None:
        self._listener = listener
        self._fuse = fuse
        self._deadline_s = deadline_s
        self._servers: set[socket.socket] = set()
        self._left_at: float | None = time.monotonic()
        self._is_refusing = False

    def run(self) -> None:
        """Run until a message says `quit`, or the file system is unmounted everywhere."""
        while self._turn():
            pass

    def _turn(self) -> bool:
        connections = {connection.fileno(): connection for connection in self._servers}
        waited = [self._listener.fileno(), *connections, *([self._fuse] if self._is_refusing else [])]
        ready, _, _ = select.select(waited, [], [], self._patience())
        if not ready and not self._servers:
            self._begin_refusing()
        for fd in ready:
            if fd == self._listener.fileno():
                self._welcome()
            elif fd in connections:
                if not self._hear(connections[fd]):
                    return False
            elif not self._servers and not self._refuse():
                return False
        return True

    def _patience(self) -> float | None:
        if self._servers or self._is_refusing:
            return None
        assert self._left_at is not None
        return max(0.0, self._left_at + self._deadline_s - time.monotonic())

    def _welcome(self) -> None:
        connection, _ = self._listener.accept()
        with contextlib.suppress(OSError):
            socket.send_fds(connection, [b"fuse"], [self._fuse])
        self._servers.add(connection)
        self._is_refusing = False

    def _hear(self, connection: socket.socket) -> bool:
        try:
            message = connection.recv(64)
        except ConnectionError:
            message = b""
        if message == b"quit":
            return False
        if not message:
            self._servers.discard(connection)
            connection.close()
            self._left_at = time.monotonic()
        return True

    def _begin_refusing(self) -> None:
        self._is_refusing = True
        with contextlib.suppress(OSError):
            os.write(self._fuse, _RESEND)

    def _refuse(self) -> bool:
        """Answer one request with an error; False if there is no file system any more.

        The descriptor has to stay blocking, since servers share it, and a request may be withdrawn between poll and
        read. So a signal ends the read if there is nothing to read after all.
        """
        try:
            signal.setitimer(signal.ITIMER_REAL, _READ_S)
            try:
                request = os.read(self._fuse, _REQUEST_BYTES)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            _, opcode, unique = _IN_HEADER.unpack_from(request)
            if opcode not in _UNANSWERED:
                os.write(self._fuse, _OUT_HEADER.pack(_OUT_HEADER.size, -errno.EIO, unique))
        except OSError as error:
            return error.errno not in _GONE
        return True


def _interrupt(_signal: int, _frame: object) -> None:
    raise InterruptedError


def main() -> None:
    """Run with the descriptors and the deadline that are given as arguments."""
    listener, fuse, deadline_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    signal.signal(signal.SIGALRM, _interrupt)
    with socket.socket(fileno=listener) as server:
        Holder(server, fuse, deadline_s).run()


if __name__ == "__main__":
    main()
