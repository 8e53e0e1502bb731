"""Talking to the service manager: sd_notify(3), sd_listen_fds(3), its descriptor store. No library: each is one
datagram or two environment variables. Without systemd every call does nothing.
"""

import os
import socket
from collections.abc import Mapping

_NAME = "mica-fuse"
_JOURNAL_NAME = "mica-journal"
_FIRST_FD = 3


class ServiceManager:
    """The service manager that the environment names; none by default."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment or {}

    def notify(self, message: str, descriptors: list[int] | None = None) -> bool:
        """True if there is a service manager to send it to."""
        path = self._environment.get("NOTIFY_SOCKET")
        if not path:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.connect("\0" + path[1:] if path.startswith("@") else path)
            socket.send_fds(connection, [message.encode("ascii")], descriptors or [])
        return True

    def keep_descriptors(self, fuse_fd: int, journal_fd: int) -> bool:
        """Have it keep them for a successor; the journal's is kept for its lock. False if its store does not take two
        (FileDescriptorStoreMax= in the unit)."""
        most = self._environment.get("FDSTORE", "")
        if not most.isdecimal() or int(most) < len((fuse_fd, journal_fd)):
            return False
        self.notify(f"FDSTORE=1\nFDNAME={_JOURNAL_NAME}", [journal_fd])
        return self.notify(f"FDSTORE=1\nFDNAME={_NAME}", [fuse_fd])

    def forget_descriptors(self) -> None:
        """Make it let go of the descriptors that it keeps."""
        for name in (_NAME, _JOURNAL_NAME):
            self.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def kept_descriptor(self) -> int | None:
        """The FUSE descriptor that a predecessor gave it to keep."""
        if self._environment.get("LISTEN_PID") != str(os.getpid()):
            return None
        names = self._environment.get("LISTEN_FDNAMES", "").split(":")
        return _FIRST_FD + names.index(_NAME) if _NAME in names else None
