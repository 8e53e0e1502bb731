"""Whether this host lets us make control groups, and the removal of ours where runc could not do it.

We set no limits; what a group is for here is the device filter. Called by `mica.run`. Any thread.
"""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Final, NamedTuple

_NAME: Final = re.compile(r"mica-[0-9a-f]{16}")
_TRIES: Final = 40  # of 25 ms: killed processes leave their group within a few ms


class Hierarchy(NamedTuple):
    """One mounted cgroup file system; `options` tells the controllers of version 1."""

    path: Path
    version: int
    options: str


def has_usable_cgroups(hierarchies: list[Hierarchy]) -> bool:
    """Whether runc can make a group with a device filter.

    It makes one in every hierarchy and gives up at the first that it cannot write to. Inside other containers some
    are read-only; then we go without any.
    """
    if not all(os.access(hierarchy.path, os.W_OK) for hierarchy in hierarchies):
        return False
    old = [hierarchy for hierarchy in hierarchies if hierarchy.version == 1]
    return any("devices" in hierarchy.options.split(",") for hierarchy in old) if old else bool(hierarchies)


def parse_hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Find the cgroup mounts in /proc/self/mountinfo (proc(5))."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (fstype, *_, options) = before.split(" "), after.split(" ")
        if fstype in {"cgroup", "cgroup2"}:
            found.append(Hierarchy(Path(_unescape(fields[4])), 2 if fstype == "cgroup2" else 1, options))
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def read_hierarchies() -> list[Hierarchy]:
    return parse_hierarchies(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))


def remove_cgroup(name: str) -> None:
    """Remove our group from all hierarchies; rmdir(2) takes only empty ones. What is still busy in the end stays."""
    if not _NAME.fullmatch(name):
        return
    for hierarchy in read_hierarchies():
        _remove_directory(hierarchy.path / name)


def _remove_directory(path: Path) -> None:
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            try:
                path.rmdir()
            except FileNotFoundError:
                return
            except OSError:  # EBUSY: a process is still dying
                time.sleep(0.025)
                continue
        return
