"""Which runs there are on this host, and which of them ended without cleaning up: for `mica status`.

Each runner keeps `run.json` in its directory (`scratch.py`) for as long as the directory is there. Only the directory's
lock says whether the run lives: its process id may belong to another process by now. Any thread.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mica.files import is_locked
from mica.mountinfo import mount_namespaces, read_mounts_of

RECORD: Final = "run.json"
_UNION: Final = "rootfs"
_RECORD_MAX_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class RunRecord:
    """`node`: the directory of the node that serves the layers; empty for a run with a private node, which has `cache`.
    `pid` is the runner's, 0 without a file `run.json`."""

    image: str = ""
    node: str = ""
    cache: str = ""
    pid: int = 0


NO_RECORD: Final = RunRecord()


@dataclass(frozen=True, slots=True)
class FoundRun:
    """`is_mounted`: the container's root directory is mounted, in its own mount namespace."""

    path: Path
    record: RunRecord
    is_running: bool
    is_mounted: bool


def format_record(record: RunRecord) -> str:
    return json.dumps(asdict(record))


def parse_record(data: bytes) -> RunRecord:
    """Raises ValueError for anything that `format_record` does not give."""
    values = json.loads(data)
    kinds = {"image": str, "node": str, "cache": str, "pid": int}
    if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != kinds:
        raise ValueError("not the record of a run")
    return RunRecord(**values)


def find_runs(root: Path) -> list[FoundRun]:
    """All runs with a directory below a runtime root, by name. Raises OSError for a root that we may not read."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    return [found for name in names if (found := _look_at(root.absolute() / name)) is not None]


def roots_in_use() -> set[Path]:
    """The runtime roots of all containers that run on this host. Only root sees those of other users."""
    unions = {
        Path(os.fsdecode(mount.target))
        for process in mount_namespaces().values()
        for mount in read_mounts_of(process)
        if mount.fstype == b"overlay" and mount.target.endswith(b"/" + _UNION.encode("ascii"))
    }
    return {union.parent.parent for union in unions if _is_ours(union.parent / RECORD)}


def _is_ours(record: Path) -> bool:
    """False for a mount that another user may have made to look like a run."""
    try:
        return record.lstat().st_uid in {0, os.geteuid()}
    except OSError:
        return False


def _look_at(path: Path) -> FoundRun | None:
    """None for a run that ended meanwhile."""
    try:
        is_running = is_locked(path)
        record = _read_record(path / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return None
    union = os.fsencode(path / _UNION)
    is_mounted = is_running and any(mount.target == union for mount in read_mounts_of(str(record.pid)))
    return FoundRun(path, record, is_running, is_mounted) if path.exists() else None


def _read_record(path: Path) -> RunRecord:
    """An empty record if the runner died before it wrote one."""
    try:
        with path.open("rb") as file:
            return parse_record(file.read(_RECORD_MAX_BYTES))
    except (FileNotFoundError, ValueError, RecursionError):
        return NO_RECORD
