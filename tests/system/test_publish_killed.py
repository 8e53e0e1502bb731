"""Publishing killed with SIGKILL at many points: the repository stays valid, what readers see is old or new, whole."""

import signal
from pathlib import Path

import pytest
from tests.support.killing import KILLING
from tests.support.noise import noise
from tests.support.repositories import FQRN, Repository, findings, ingest, make_repository, read_back
from tests.support.tars import END, member
from tests.support.zygote import Finished, Zygote, zygote

__all__ = ["zygote"]

pytestmark = pytest.mark.system
POINTS = 40
LAST_POINTS = 24  # reflog, checksum and manifest are the last to change: none of their steps is left out

# The child counts what it does to files of the repository, and kills itself at the n-th step; with n = 0 it only prints
# how many there are.
CHILD = (
    KILLING
    + """
fqrn, state, storage, archive, n = *sys.argv[1:5], int(sys.argv[5])
from mica.cli.main import run_app
def is_step(event, arguments, paths):
    return any(state in path or storage in path for path in paths)
steps = kill_at(n, {"open", "os.rename", "os.link", "os.remove", "sqlite3.connect", "os.mkdir"}, is_step)
code = run_app(["repo", "ingest", fqrn, archive, "/data/new", "--catalog", "--state", state])
print(steps())
sys.exit(code)
"""
)


def publish(zygote: Zygote, repository: Repository, archive: Path, n: int) -> Finished:
    arguments = [FQRN, str(repository.state), str(repository.storage), str(archive), str(n)]
    return zygote.run_script(CHILD, *arguments)


def archive_of(label: str) -> bytes:
    """Small files, one in chunks, and one that an earlier revision has too."""
    files = {f"{label}/{number}": f"{label} {number}".encode() * 40 for number in range(12)}
    files |= {f"{label}/large": noise(40_000), "common": b"the same in every revision"}
    return b"".join(member(name.encode(), data) for name, data in files.items()) + END


def leftovers(repository: Repository) -> list[Path]:
    """Temporary files, which nothing refers to and nobody removes later."""
    places = {*repository.storage.rglob("*"), *repository.state.rglob("*")}
    places.discard(repository.storage / "data/txn/pointers.lock")
    return [path for path in places if path.is_file() and (path.suffix == ".tmp" or {"txn", "work"} & set(path.parts))]


def test_killed_anywhere_leaves_the_old_revision_or_the_new_one(zygote: Zygote, tmp_path: Path) -> None:
    archive = tmp_path / "new.tar"
    archive.write_bytes(archive_of("new"))
    counted = make_repository(tmp_path / "counted")
    ingest(counted, archive_of("old"), b"/data")
    before = read_back(counted, tmp_path / "cache-counted")
    whole = publish(zygote, counted, archive, 0)
    assert whole.returncode == 0, whole.stderr
    total = int(whole.stdout.split()[-1])
    assert total >= POINTS, f"only {total} points"
    after = set(read_back(counted, tmp_path / "cache-counted-new"))

    repository = make_repository(tmp_path / "killed")
    old_archive = archive_of("old")
    ingest(repository, old_archive, b"/data")
    old = read_back(repository, tmp_path / "cache-old")
    assert set(old) == set(before)
    spread = {1 + number * (total - 1) // (POINTS - 1) for number in range(POINTS)}
    points = sorted(spread | set(range(max(1, total - LAST_POINTS), total + 1)))
    killed = 0
    for n in points:
        result = publish(zygote, repository, archive, n)
        killed += result.returncode == -signal.SIGKILL
        found = read_back(repository, tmp_path / f"cache-{n}")
        wrong = [finding for finding in findings(repository, tmp_path) if finding.severity == "error"]
        assert not wrong, f"killed at {n} of {total}: {wrong[0]}"
        if set(found) == after:
            break
        assert found == old, f"killed at {n} of {total}: neither the old revision nor the new one"
    assert killed >= 20
    assert publish(zygote, repository, archive, 0).returncode == 0
    assert set(read_back(repository, tmp_path / "cache-last")) == after
    assert not leftovers(repository)
