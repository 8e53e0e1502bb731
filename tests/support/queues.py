"""Queues for tests: SQLite in a file, and a real PostgreSQL server on a free port of loopback."""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.tools import missing

_UNPACKED = Path(__file__).resolve().parents[2] / "build" / "debian"
_NOBODY = 65534
"""The server refuses to run as root."""


def sqlite_url(directory: Path) -> str:
    return f"sqlite:///{directory / 'queue.db'}"


@functools.cache
def _programs() -> Path:
    """The directory of the server's programs, which Debian keeps out of the path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    found_at = [path.parent for root in (_UNPACKED, Path("/")) for path in root.glob("usr/lib/postgresql/*/bin/initdb")]
    return found_at[0] if found_at else missing("initdb is missing: apt-get install postgresql-15")


def _copied(programs: Path, place: Path) -> Path:
    """What Debian unpacked, where the server's user can reach it: a checkout may lie below a home that is closed. The
    server finds its files from the place of its programs, as long as both are as far apart as in Debian."""
    version = programs.parent.name
    for kind in ("lib", "share"):
        part = Path("usr", kind, "postgresql", version)
        shutil.copytree(_UNPACKED / part, place / part, symlinks=True)
    return place / programs.relative_to(_UNPACKED)


@contextlib.contextmanager
def postgres_server(address: str = "127.0.0.1") -> Iterator[str]:
    """URL of an empty database of a server of its own, for a block."""
    with tempfile.TemporaryDirectory(prefix="mica-pg-") as place, socket.socket() as taken:
        data = f"{place}/data"
        programs = _programs()
        as_nobody = []
        if os.geteuid() == 0:
            if programs.is_relative_to(_UNPACKED):
                programs = _copied(programs, Path(place))
            os.chown(place, _NOBODY, _NOBODY)
            as_nobody = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        taken.bind((address, 0))
        port = taken.getsockname()[1]
        taken.close()

        def run(*command: str) -> None:
            done = subprocess.run(
                [*as_nobody, *command], cwd=place, env={**os.environ, "LC_ALL": "C.UTF-8"}, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout

        run(f"{programs}/initdb", "-D", data, "-U", "mica", "-A", "trust", "-N")
        options = f"-p {port} -k {place} -c listen_addresses={address} -c fsync=off -c max_connections=200"
        with open(f"{data}/pg_hba.conf", "a") as file:
            file.write("host all all 0.0.0.0/0 trust\n")
        run(f"{programs}/pg_ctl", "-D", data, "-w", "-l", f"{place}/log", "-o", options, "start")
        try:
            yield f"postgresql://mica@{address}:{port}/postgres"
        finally:
            run(f"{programs}/pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
