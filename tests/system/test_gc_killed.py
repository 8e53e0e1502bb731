"""Collecting garbage killed with SIGKILL at many points: what is kept stays whole, and the next collection does all."""

import shutil
import signal
from pathlib import Path

import pytest
from tests.support.garbage import check_complete, objects_in, wanted_objects, work_files
from tests.support.killing import KILLING
from tests.support.repositories import FQRN, Repository, findings, ingest, make_repository
from tests.support.tars import END, member
from tests.support.zygote import Finished, Zygote, zygote

from mica.publish.tags import add_tag

__all__ = ["zygote"]

pytestmark = pytest.mark.system
POINTS = 40

# The child counts what it changes in files of the repository, and kills itself at the n-th step; with n = 0 it only
# prints how many there are.
CHILD = (
    KILLING
    + """
from pathlib import Path
state, storage, fqrn, n = *sys.argv[1:4], int(sys.argv[4])
from mica.collect.collection import opened_collection
from mica.collect.retention import RetentionRules
from mica.publish.manager import ReleaseManager
marks = os.path.join(state, "repositories", fqrn, "gc", "work")
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.utime", "os.chmod", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def is_step(event, arguments, paths):
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
        return False
    ours = any(state in path or storage in path for path in paths)
    return ours and not any(path.startswith(marks) for path in paths)
steps = kill_at(n, CHANGES | {"open"}, is_step)
rules = RetentionRules(keep_revisions=1, keep_s=-1, auto_tag_s=-3600, grace_s=-1)
with ReleaseManager.open(Path(state), fqrn) as manager, opened_collection(manager, rules) as collection:
    collection.run()
print(steps())
"""
)


def collect(zygote: Zygote, repository: Repository, n: int) -> Finished:
    arguments = [str(repository.state), str(repository.storage), repository.fqrn, str(n)]
    return zygote.run_script(CHILD, *arguments, timeout_s=120)


@pytest.fixture
def template(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "template", auto_tag=True)
    for label in ("first", "second", "third", "fourth", "fifth"):
        archive = b"".join(member(f"{label}/{n}".encode(), f"{label} {n}".encode() * 9) for n in range(4)) + END
        ingest(repository, archive, b"/data", nested=True)
        if label == "second":
            with repository.manager() as manager:
                add_tag(manager, "release")
    return repository


def copied(template: Repository, place: Path) -> Repository:
    for name in ("state", "storage", "keys"):
        shutil.copytree(template.storage.parent / name, place / name)
    path = place / "state" / "repositories" / FQRN / "repository.toml"
    path.write_text(path.read_text().replace(str(template.storage.parent), str(place)))
    return Repository(FQRN, place / "state", place / "storage", place / "keys")


def test_killed_anywhere_breaks_nothing_and_the_next_collection_does_the_rest(
    zygote: Zygote, template: Repository, tmp_path: Path
) -> None:
    counted = collect(zygote, copied(template, tmp_path / "counted"), 0)
    assert counted.returncode == 0, counted.stderr
    total = int(counted.stdout.split()[-1])
    assert total >= POINTS, f"only {total} points"
    killed = 0
    for n in sorted({1 + number * (total - 1) // (POINTS - 1) for number in range(POINTS)}):
        repository = copied(template, tmp_path / "killed")
        result = collect(zygote, repository, n)
        killed += result.returncode == -signal.SIGKILL
        with repository.manager() as manager:
            check_complete(manager)
        wrong = [one for one in findings(repository, tmp_path) if one.severity == "error"]
        assert not wrong, f"killed at {n} of {total}: {wrong[0]}"
        assert collect(zygote, repository, 0).returncode == 0
        with repository.manager() as manager:
            check_complete(manager)
            assert objects_in(manager.store) == wanted_objects(manager), f"killed at {n} of {total}"
        home = repository.state / "repositories" / FQRN
        assert work_files(home) == []
        left = [path for path in (repository.storage / "data/txn").iterdir() if path.name != "pointers.lock"]
        assert left == []
        shutil.rmtree(tmp_path / "killed")
    assert killed >= 30
