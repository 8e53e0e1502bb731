"""Replication killed with SIGKILL at many points: readers find the old revision or the new one, and it is whole."""

import shutil
import signal
from pathlib import Path

import pytest
from tests.support.killing import KILLING
from tests.support.noise import noise
from tests.support.replicas import broken_catalogs, errors_in, shown_revision
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.webserver import serving
from tests.support.zygote import Finished, Zygote, zygote

from mica.store.local import LocalStore

__all__ = ["zygote"]

pytestmark = pytest.mark.system
POINTS = 36
LAST_POINTS = 16  # catalogs, reflog and pointers are the last to change: few of their steps are left out

# The child counts what it does to files of the replica and of its own directory, and kills itself at the n-th step;
# with n = 0 it only prints how many there are.
CHILD = (
    KILLING
    + """
fqrn, url, replica, key, state, n = *sys.argv[1:6], int(sys.argv[6])
from mica.cli.main import run_app
def is_step(event, arguments, paths):
    return any(state in path or replica in path for path in paths)
steps = kill_at(n, {"open", "os.rename", "os.link", "os.remove"}, is_step)
command = ["repo", "replicate", url, replica, "--name", fqrn, "--key", key, "--state", state, "--threads", "3"]
code = run_app(command)
print(steps())
sys.exit(code)
"""
)


def replicate(zygote: Zygote, repository: Repository, url: str, place: Path, n: int = 0) -> Finished:
    key = repository.keys / f"{FQRN}.pub"
    arguments = [FQRN, url, str(place / "replica"), str(key), str(place / "state"), str(n)]
    return zygote.run_script(CHILD, *arguments)


def archive(label: str) -> bytes:
    files = {f"{label}/{number}": f"{label} {number}".encode() * 40 for number in range(12)}
    files |= {f"{label}/large": noise(40_000), "common": b"the same in every revision"}
    return b"".join(member(name.encode(), data) for name, data in files.items()) + END


def leftovers(place: Path) -> list[Path]:
    """Files that nobody removes later, and none that readers know."""
    files = [path for path in place.rglob("*") if path.is_file()]
    return [path for path in files if path.suffix == ".tmp" or path.parent.name in {"txn", "work"}]


def test_killed_anywhere_leaves_the_old_revision_or_the_new_one(zygote: Zygote, tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "source")
    ingest(repository, archive("old"), b"/old", nested=True)
    start = tmp_path / "start"
    with serving(repository.storage) as server:
        assert replicate(zygote, repository, server.url, start).returncode == 0
        ingest(repository, archive("new"), b"/new", nested=True)
        ingest(repository, archive("newest"), b"/newest", nested=True)
        counted = tmp_path / "counted"
        shutil.copytree(start, counted)
        whole = replicate(zygote, repository, server.url, counted)
        assert whole.returncode == 0, whole.stderr
        total = int(whole.stdout.split()[-1])
        assert total >= POINTS, f"only {total} points"
        spread = {1 + number * (total - 1) // (POINTS - 1) for number in range(POINTS)}
        killed, shown = 0, set()
        place = tmp_path / "place"
        for n in sorted(spread | set(range(total - LAST_POINTS, total + 1))):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(start, place)
            killed += replicate(zygote, repository, server.url, place, n).returncode == -signal.SIGKILL
            with LocalStore(place / "replica") as store:
                shown.add(shown_revision(store))
                assert errors_in(store, [repository.master_key], tmp_path) == [], f"killed at {n} of {total}"
                assert broken_catalogs(store) == [], f"killed at {n} of {total}"
            again = replicate(zygote, repository, server.url, place)
            assert again.returncode == 0, again.stderr
            with LocalStore(place / "replica") as store:
                assert shown_revision(store) == 4
                assert errors_in(store, [repository.master_key], tmp_path) == []
            lock = place / "replica/data/txn/pointers.lock"
            assert [path for path in leftovers(place) if path != lock] == []
        assert killed >= 30
        assert shown == {2, 4}


def test_killed_in_the_first_replication(zygote: Zygote, tmp_path: Path) -> None:
    """There is no replica until it is whole, and what was copied is not fetched again."""
    repository = make_repository(tmp_path / "source")
    ingest(repository, archive("old"), b"/old", nested=True)
    with serving(repository.storage) as server:
        counted = replicate(zygote, repository, server.url, tmp_path / "counted")
        total = int(counted.stdout.split()[-1])
        place = tmp_path / "place"
        for n in (total // 4, total // 3, total // 2):
            replicate(zygote, repository, server.url, place, n)
            with LocalStore(place / "replica") as store:
                assert shown_revision(store) == 0
                assert broken_catalogs(store) == []
        there = {f"/{path.relative_to(place / 'replica')}" for path in (place / "replica/data").glob("??/*")}
        server.requests.clear()
        assert replicate(zygote, repository, server.url, place).returncode == 0
        certificates = {path for path in there if path.endswith("X")}
        assert there - certificates
        assert not (there - certificates) & set(server.requests)
