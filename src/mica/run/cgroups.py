"""Whether this host lets us make control groups, and the removal of ours where runc could not do it.

We set no limits; a group is here for the device filter only. Called by `mica.run`. Any thread.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from mica.mountinfo import Mount, read_mounts

_NAME: Final = re.compile(r"mica-[0-9a-f]{16}")
_VERSIONS: Final = {b"cgroup": 1, b"cgroup2": 2}
_TRIES: Final = 40  # of 25 ms: killed processes leave their group within a few ms


class Hierarchy(NamedTuple):
    """One mounted cgroup file system; `options` tells the controllers of version 1."""

    path: Path
    version: int
    options: str


def has_usable_cgroups(hierarchies: list[Hierarchy]) -> bool:
    """Whether runc can make a group with a device filter.

    runc makes one in every hierarchy and fails at the first that it cannot write to. Inside other containers some are
    read-only; then the container runs without a group.
    """
    if not all(os.access(hierarchy.path, os.W_OK) for hierarchy in hierarchies):
        return False
    old = [hierarchy for hierarchy in hierarchies if hierarchy.version == 1]
    return any("devices" in hierarchy.options.split(",") for hierarchy in old) if old else bool(hierarchies)


def hierarchies_among(mounts: Iterable[Mount]) -> list[Hierarchy]:
    """The cgroup file systems among what is mounted."""
    return [
        Hierarchy(Path(os.fsdecode(mount.target)), _VERSIONS[mount.fstype], os.fsdecode(mount.super_options))
        for mount in mounts
        if mount.fstype in _VERSIONS
    ]


def read_hierarchies() -> list[Hierarchy]:
    return hierarchies_among(read_mounts())


def remove_cgroup(name: str) -> None:
    """Remove our group from all hierarchies; rmdir(2) takes only empty ones. A group that is still busy at the end
    stays."""
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
