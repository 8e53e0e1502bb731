"""What the service manager is told and gives: sd_notify(3), sd_listen_fds(3), its descriptor store. No library: each is
one datagram or two environment variables. Without systemd every call does nothing.
"""

import os
import socket
from collections.abc import Mapping

_NAME = "mica-fuse"
_FIRST_FD = 3


class ServiceManager:
    """What an environment tells of it; none by default."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment or {}

    def notify(self, message: str, descriptors: list[int] | None = None) -> bool:
        """Whether there is somebody to tell."""
        path = self._environment.get("NOTIFY_SOCKET")
        if not path:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.connect("\0" + path[1:] if path.startswith("@") else path)
            socket.send_fds(connection, [message.encode("ascii")], descriptors or [])
        return True

    def keep_descriptor(self, fd: int) -> bool:
        """Have it kept for our successor. False without a store (FileDescriptorStoreMax= in the unit)."""
        if self._environment.get("FDSTORE", "0") in {"", "0"}:
            return False
        return self.notify(f"FDSTORE=1\nFDNAME={_NAME}", [fd])

    def kept_descriptor(self) -> int | None:
        """What a predecessor had it keep."""
        if self._environment.get("LISTEN_PID") != str(os.getpid()):
            return None
        names = self._environment.get("LISTEN_FDNAMES", "").split(":")
        return _FIRST_FD + names.index(_NAME) if _NAME in names else None
