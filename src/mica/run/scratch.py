"""The directories of running containers under one runtime root, and the removal of those whose runner died.

    ROOT/.lock              held while a directory is made or taken over; never for long
    ROOT/<name>/            one run; its flock(2) is held by the runner for as long as it lives
        run.json            what runs there, for `mica status` (`runrecords.py`)
        cgroup              name of its control group
        config.json etc/    the bundle for runc
        rootfs/             mount point of the union, in the runner's mount namespace only
        upper/ work/        the scratch layer, unless it is kept elsewhere
        runc/ runc.log pid  runc's own state
    ROOT/.dead-<hex>/       a dead run while it is being removed

A killed runner leaves no mount (its mount namespace is gone) and no process (see `runc.py`), only its directory and its
empty control group. No process of ours outlives it to remove them: `sweep` does so at the next `mica run`, `mica node`
or `mica doctor` with the same state directory, and `mica status` names them until then. The kernel releases the lock,
so a run is dead exactly when nobody holds it, whatever process ids say. Any thread.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mica.errors import TemporaryError
from mica.files import mapped_os_errors, owned_fd, remove_tree
from mica.run.cgroups import remove_cgroup
from mica.run.runrecords import NO_RECORD, RECORD, RunRecord, format_record

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class RunDirectory:
    path: Path
    token: str

    @property
    def cgroup(self) -> str:
        return f"mica-{self.token}"


@contextlib.contextmanager
def open_run_directory(root: Path, name: str | None, record: RunRecord = NO_RECORD) -> Iterator[RunDirectory]:
    """A locked directory for one run, removed with its control group at the end. `record` gets our process id.

    Raises TemporaryError if a container of that name is running.
    """
    token = secrets.token_hex(8)
    directory = RunDirectory(root / (name or token), token)
    with contextlib.ExitStack() as stack:
        with mapped_os_errors(f"use {root} for running containers"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _root_lock(root):
                try:
                    directory.path.mkdir(mode=0o700)
                except FileExistsError as error:
                    raise TemporaryError(f"A container named {directory.path.name!r} is running already.") from error
                stack.callback(_remove, directory.path)
                fd = stack.enter_context(owned_fd(os.open(directory.path, _DIRECTORY)))
                fcntl.flock(fd, fcntl.LOCK_EX)
            (directory.path / "cgroup").write_text(directory.cgroup, encoding="ascii")
            (directory.path / RECORD).write_text(format_record(replace(record, pid=os.getpid())), encoding="ascii")
        yield directory


def sweep(root: Path) -> list[str]:
    """Remove what dead runs left, and return their names. The next sweep tries again what cannot be removed now."""
    if not root.is_dir():
        return []
    names = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink()]
    return [name for name in names if _sweep_one(root, name)]


def _sweep_one(root: Path, name: str) -> bool:
    dead = root / f".dead-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        try:
            with _root_lock(root):
                fd = stack.enter_context(owned_fd(os.open(root / name, _DIRECTORY)))
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (root / name).rename(dead)
        except OSError:  # alive (EWOULDBLOCK), or another sweep was faster (ENOENT)
            return False
        try:
            _remove(dead)
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _root_lock(root: Path) -> Iterator[None]:
    with owned_fd(os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        remove_cgroup((path / "cgroup").read_text(encoding="ascii"))
    for attempt in range(4):
        try:
            remove_tree(path)
        except OSError as error:
            # Processes of a killed container may still make files for some milliseconds.
            if error.errno not in {errno.ENOTEMPTY, errno.EBUSY} or attempt == 3:
                raise
            time.sleep(0.05)
        else:
            return
