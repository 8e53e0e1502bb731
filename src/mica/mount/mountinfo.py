"""What is mounted: /proc/self/mountinfo as values (proc_pid_mountinfo(5)). Pure besides reading that one file."""

import os
import re
from pathlib import Path
from typing import NamedTuple

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line; `target` is absolute."""

    target: bytes
    fstype: str
    source: bytes
    options: bytes


def parse_mountinfo(data: bytes) -> list[Mount]:
    mounts = []
    for line in data.split(b"\n"):  # the kernel escapes that in names, but not the carriage return
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if len(fields) >= 6 and len(rest) >= 2:
            mounts.append(Mount(_unescaped(fields[4]), rest[0].decode(), _unescaped(rest[1]), fields[5]))
    return mounts


def find_mount(target: Path) -> Mount | None:
    """The topmost mount exactly on a path."""
    wanted = os.fsencode(os.path.realpath(target))
    found = [mount for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_bytes()) if mount.target == wanted]
    return found[-1] if found else None


def _unescaped(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)
