"""`mica repo gc` from the command line: its table and its JSON, the stock repository continued, full and read-only
storage."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli import Outcome, mica
from tests.support.fixture import FQRN as STOCK
from tests.support.fixture import continue_stock
from tests.support.garbage import DAY_S, make_old
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member

from mica import linux
from mica.repo.history import format_reflog, parse_reflog

pytestmark = pytest.mark.system
ALL = ("--keep-revisions", "1", "--keep-days", "0")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Four revisions, all of them old."""
    repository = make_repository(tmp_path / "publisher")
    for label in (b"one", b"two", b"three"):
        ingest(repository, member(label, label * 500) + END, b"/" + label, nested=True)
    make_all_old(repository)
    return repository


def make_all_old(repository: Repository) -> None:
    make_old(repository)
    path = repository.storage / ".cvmfsreflog"
    reflog = parse_reflog(path.read_bytes(), "reflog")
    reflog.refs = {digest: (kind, at - int(30 * DAY_S)) for digest, (kind, at) in reflog.refs.items()}
    path.write_bytes(format_reflog(reflog))


def done(state: Path, *arguments: str) -> Outcome:
    outcome = mica(state, "repo", *arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome


def objects(storage: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in storage.glob("data/??/*")}


def test_a_plan_and_what_becomes_of_it(repository: Repository) -> None:
    before = objects(repository.storage)
    planned = json.loads(done(repository.state, "gc", FQRN, *ALL, "--dry-run", "--json").stdout)
    assert objects(repository.storage) == before
    assert planned["dry_run"]
    assert planned["condemned"]["objects"] > 0
    assert planned["removed"] == {"objects": 0, "bytes": 0}
    table = done(repository.state, "gc", FQRN, *ALL, "--dry-run").stdout
    assert "replaced too long ago" in table
    assert f"would remove  {planned['condemned']['objects']} objects" in table
    removed = json.loads(done(repository.state, "gc", FQRN, *ALL, "--json").stdout)
    assert removed["removed"] == planned["condemned"]
    assert not removed["dry_run"]
    assert len(before - objects(repository.storage)) == removed["removed"]["objects"]
    assert done(repository.state, "check", FQRN, "--hash").stdout == f"{FQRN}: no errors, 0 warnings\n"
    assert "removed     0 objects, 0 B" in done(repository.state, "gc", FQRN, *ALL).stdout


def test_settings_say_what_stays(repository: Repository) -> None:
    path = repository.state / "repositories" / FQRN / "repository.toml"
    text = path.read_text()
    assert "gc_keep_revisions = 3\n" in text
    path.write_text(text.replace("gc_keep_revisions = 3", "gc_keep_revisions = 1").replace(
        "gc_keep_days = 14", "gc_keep_days = 0.0"
    ))  # fmt: skip
    planned = json.loads(done(repository.state, "gc", FQRN, "--dry-run", "--json").stdout)
    assert planned["revisions"] == 2, "the third has the tag trunk-previous"
    kept = json.loads(done(repository.state, "gc", FQRN, "--keep-days", "14", "--dry-run", "--json").stdout)
    assert kept["revisions"] == 0
    path.write_text(path.read_text().replace("gc_keep_days = 0.0", "gc_keep_days = -1"))
    assert "gc_keep_days" in mica(repository.state, "repo", "gc", FQRN).sentence


def test_a_grace_period_that_is_too_short_is_refused(repository: Repository) -> None:
    refused = mica(repository.state, "repo", "gc", FQRN, "--grace-days", "2")
    assert refused.code == 1
    assert refused.sentence.startswith("A grace period of 2 days is too short")


def test_young_revisions_stay(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "publisher")
    for label in (b"one", b"two", b"three"):
        ingest(repository, member(label, label * 500) + END)
    before = objects(repository.storage)
    done(repository.state, "gc", FQRN, *ALL)
    assert objects(repository.storage) == before


def test_the_stock_repository_continued(tmp_path: Path) -> None:
    """The stock server made it, and collected once; mica publishes, names, collects, and goes on."""
    state = continue_stock(tmp_path)
    clean = f"{STOCK}: no errors, 0 warnings\n"
    storage = tmp_path / "storage"
    repository = Repository(STOCK, state, storage, tmp_path / "keys")
    before = objects(storage)
    done(state, "gc", STOCK, *ALL)
    assert done(state, "check", STOCK, "--hash").stdout == clean
    assert objects(storage) <= before, "the stock server's own collection has left what no revision has"
    for label in (b"one", b"two", b"three"):
        ingest(repository, member(label, label * 500) + END, b"/by-mica")
    done(state, "tag", "add", STOCK, "mine", "v1-base")
    done(state, "tag", "rm", STOCK, "v5-hardlinks")
    make_all_old(repository)
    removed = json.loads(done(state, "gc", STOCK, *ALL, "--json").stdout)
    assert removed["removed"]["objects"] > 0
    assert removed["warnings"] == []
    assert done(state, "check", STOCK, "--hash").stdout == clean
    status = json.loads((storage / ".cvmfs_status.json").read_text())
    assert status["last_gc"] != "Mon Nov 23 18:11:03 UTC 2026"
    for tag in ("mine", "v4-directio", "named-later"):
        assert done(state, "diff", STOCK, tag, "--json").code == 0, "its catalogs are there"
    done(state, "rollback", STOCK, "v1-base")
    assert done(state, "check", STOCK, "--hash").stdout == clean


@contextlib.contextmanager
def mounted(target: Path, *mounts: tuple[str, str, int, str]) -> Iterator[None]:
    for source, kind, flags, data in mounts:
        linux.mount(source, target, kind, flags=flags, data=data)
    try:
        yield
    finally:
        linux.umount2(target, linux.MNT_DETACH)


@pytest.mark.parametrize("filled_bytes", [1 << 20, (1 << 20) - 3 * 4096, (1 << 20) - 12 * 4096])
def test_a_full_disk_is_a_sentence_and_no_harm(repository: Repository, filled_bytes: int) -> None:
    """There is no room for the marks, or for the catalogs; then there is."""
    work = repository.state / "repositories" / FQRN / "gc"
    work.mkdir()
    before = objects(repository.storage)
    with mounted(work, ("mica-test", "tmpfs", 0, "size=1m,mode=0700")):
        with contextlib.suppress(OSError), (work / "filler").open("wb", buffering=0) as file:
            for _ in range(filled_bytes // 4096):
                file.write(bytes(4096))
        refused = mica(repository.state, "repo", "gc", FQRN, *ALL)
        assert refused.code == 1
        assert "No space left" in refused.sentence
        assert objects(repository.storage) == before
        (work / "filler").unlink()
        done(repository.state, "gc", FQRN, *ALL)
    assert done(repository.state, "check", FQRN, "--hash").stdout == f"{FQRN}: no errors, 0 warnings\n"


def test_a_storage_that_cannot_be_written_is_a_sentence_and_no_harm(repository: Repository) -> None:
    before = objects(repository.storage)
    storage = repository.storage
    bind = (str(storage), "", linux.MS_BIND, "")
    with mounted(storage, bind, ("", "", linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY, "")):
        refused = mica(repository.state, "repo", "gc", FQRN, *ALL)
        assert refused.code == 1
        assert "Read-only file system" in refused.sentence
    assert objects(storage) == before
    done(repository.state, "gc", FQRN, *ALL)
    assert done(repository.state, "check", FQRN, "--hash").stdout == f"{FQRN}: no errors, 0 warnings\n"
