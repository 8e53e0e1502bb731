"""Asking the servers of this host's mounted repositories for their status: the mount table, then each root's attribute.

Any user may mount something that looks like ours, so only mounts of root or the caller are asked, and answers are
parsed as untrusted. A server that does not answer delays no other. Called by `mica status`.
"""

import enum
import os
import re
import threading
import time
from typing import Final, NamedTuple

from mica.files import owned_fd
from mica.fuse.identity import FUSE_TYPE, OBJECTS_SOURCE, REPOSITORY_PREFIX, SERVER_GONE
from mica.mount.status import NAME, MountStatus, parse_status
from mica.mountinfo import Mount, mount_number

_PATIENCE_S = 5.0
_USER: Final = re.compile(rb"(?:^|,)user_id=(\d+)(?:,|$)")


class State(enum.StrEnum):
    """The state of a mount; the values are for people and JSON."""

    SERVING = "serving"
    GONE = "its server is gone"
    SILENT = "its server does not answer"
    COVERED = "covered by another mount"
    FOREIGN = "mounted by another user"
    UNKNOWN = "its server tells nothing of itself"


class Report(NamedTuple):
    """`status` is there while the server is serving."""

    fqrn: str
    target: bytes
    state: State
    status: MountStatus | None = None


def is_repository(mount: Mount) -> bool:
    is_ours = mount.fstype == FUSE_TYPE.encode() and mount.source.startswith(REPOSITORY_PREFIX.encode())
    return is_ours and mount.source != OBJECTS_SOURCE.encode()


def is_trusted(mount: Mount) -> bool:
    """Whether root or the caller mounted it by FUSE."""
    found = _USER.search(mount.super_options)
    return found is not None and int(found[1]) in {0, os.geteuid()}


def report_mounts(mounts: list[Mount], *, patience_s: float = _PATIENCE_S) -> list[Report]:
    """Ask all of them at once, and wait `patience_s` for all of them together."""
    inquiries = [_Inquiry(mount) for mount in mounts]
    for inquiry in inquiries:
        inquiry.start()
    deadline = time.monotonic() + patience_s
    for inquiry in inquiries:
        inquiry.join(max(0.0, deadline - time.monotonic()))
    return [inquiry.report for inquiry in inquiries]


class _Inquiry(threading.Thread):
    """A daemon thread: if it still waits for a server, it ends with the process."""

    def __init__(self, mount: Mount) -> None:
        super().__init__(name="inquiry", daemon=True)
        self._mount = mount
        self._fqrn = os.fsdecode(mount.source).removeprefix(REPOSITORY_PREFIX)
        self.report = Report(self._fqrn, mount.target, State.SILENT)

    def run(self) -> None:
        status = None
        try:
            state, status = self._ask()
        except ValueError:
            state = State.UNKNOWN
        except OSError as error:
            state = State.GONE if error.errno in SERVER_GONE else State.UNKNOWN
        self.report = Report(self._fqrn, self._mount.target, state, status)

    def _ask(self) -> tuple[State, MountStatus | None]:
        if not is_trusted(self._mount):
            return State.FOREIGN, None
        with owned_fd(os.open(self._mount.target, os.O_PATH | os.O_CLOEXEC)) as fd:
            if mount_number(fd) != self._mount.number:
                return State.COVERED, None
            return State.SERVING, parse_status(os.getxattr(f"/proc/self/fd/{fd}", NAME))
