"""Tags, rollback, differences and mounts of older revisions: the commands, and the stock repository continued."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.cli import Outcome, mica
from tests.support.fixture import FQRN as STOCK
from tests.support.fixture import continue_stock
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.tools import need_fuse

from mica import linux

pytestmark = pytest.mark.system


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Revision 2 has /one, 3 also /two, 4 has another /one."""
    repository = make_repository(tmp_path / "publisher")
    ingest(repository, member(b"one", b"first") + END)
    ingest(repository, member(b"two", b"second") + END)
    ingest(repository, member(b"one", b"third") + END)
    return repository


def done(state: Path, *arguments: str) -> Outcome:
    outcome = mica(state, "repo", *arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome


def tags(state: Path, fqrn: str) -> dict[str, int]:
    listed = json.loads(done(state, "tag", "ls", fqrn, "--json").stdout)
    return {tag["name"]: tag["revision"] for tag in listed}


def differences(state: Path, fqrn: str, *revisions: str) -> list[tuple[str, str]]:
    lines = done(state, "diff", fqrn, *revisions, "--json").stdout.splitlines()
    return [(line["path"], line["change"]) for line in map(json.loads, lines)]


@contextmanager
def mounted(state: Path, fqrn: str, target: Path, *options: str) -> Iterator[Path]:
    need_fuse()
    target.mkdir()
    outcome = mica(state, "mount", fqrn, str(target), *options)
    assert outcome.code == 0, outcome.stderr
    try:
        yield target
    finally:
        linux.umount2(target, linux.MNT_DETACH)


def attribute(path: Path, name: str) -> str:
    return os.getxattr(path, name).decode()


def test_the_commands(repository: Repository) -> None:
    state = repository.state
    done(state, "tag", "add", FQRN, "first", "2", "--description", "the beginning")
    done(state, "tag", "add", FQRN, "newest")
    assert tags(state, FQRN) == {"first": 2, "newest": 4, "trunk": 4, "trunk-previous": 3}
    assert [line.split()[:2] for line in done(state, "tag", "ls", FQRN, "first").stdout.splitlines()[3:-1]] == [
        ["2", "first"]
    ]
    assert differences(state, FQRN, "first") == [("/", "changed"), ("/one", "changed"), ("/two", "added")][1:]
    assert done(state, "diff", FQRN, "first", "3").stdout == "added    /two\n"
    assert done(state, "diff", FQRN, "4", "3").stdout == "changed  /one  (content)\n"
    (line,) = done(state, "diff", FQRN, "3", "4", "--json").stdout.splitlines()
    assert json.loads(line) == {"path": "/one", "change": "changed", "kind": "file", "differs": ["content"]}
    back = json.loads(done(state, "rollback", FQRN, "first", "--json").stdout)
    assert back == {"repository": FQRN, "revision": 5, "content_of": 2, "removed_tags": ["newest"]}
    assert done(state, "ls", FQRN).stdout == "one\n"
    assert tags(state, FQRN) == {"first": 5, "trunk": 5}
    listed = json.loads(done(state, "history", FQRN, "--all", "--json").stdout)
    assert [each["revision"] for each in listed] == [5, 5, 4, 3, 2, 1]
    done(state, "tag", "rm", FQRN, "first")
    assert tags(state, FQRN) == {"trunk": 5}
    assert done(state, "check", FQRN, "--hash").stdout == f"{FQRN}: no errors, 0 warnings\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tag", "add", FQRN, "trunk"), "'trunk' always follows the newest revisions: it cannot be set."),
        (("tag", "add", FQRN, "a b"), "'a b' cannot be the name of a tag."),
        (("tag", "add", FQRN, "x", "9"), f"{FQRN} has no revision 9: its newest is 4."),
        (("tag", "rm", FQRN, "x"), f"{FQRN} has no tag 'x'."),
        (("tag", "ls", FQRN, "x"), f"{FQRN} has no tag 'x'."),
        (("rollback", FQRN, "4"), f"Revision 4 is the newest one of {FQRN} already."),
        (("diff", FQRN, "x"), f"{FQRN} has no tag 'x'."),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    repository: Repository, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = mica(repository.state, "repo", *arguments)
    assert (outcome.code, outcome.sentence) == (1, sentence)


def test_an_older_revision_is_mounted_and_stays(repository: Repository, tmp_path: Path) -> None:
    state = repository.state
    done(state, "tag", "add", FQRN, "first", "2")
    with (
        mounted(state, FQRN, tmp_path / "first", "--tag", "first") as first,
        mounted(state, FQRN, tmp_path / "third", "--revision", "3") as third,
        mounted(state, FQRN, tmp_path / "newest") as newest,
    ):
        assert os.listdir(first) == ["one"]
        assert sorted(os.listdir(third)) == ["one", "two"]
        contents = [(place / "one").read_bytes() for place in (first, third, newest)]
        assert contents == [b"first", b"first", b"third"]
        assert [attribute(place, "user.revision") for place in (first, third, newest)] == ["2", "3", "4"]
        assert [place for place in (first, third, newest) if "user.tag" in os.listxattr(place)] == [first]
        assert attribute(first, "user.tag") == "first"
        assert attribute(first, "user.expires") == "never (fixed root catalog)"
    for options, code, sentence in (
        (("--tag", "x"), 1, f"{FQRN} has no tag 'x'."),
        (("--revision", "9"), 1, f"{FQRN} has no revision 9: its newest is 4."),
        (("--tag", "first", "--revision", "2"), 2, "--tag and --revision name one revision each: give only one."),
    ):
        outcome = mica(state, "mount", FQRN, str(tmp_path / "first"), *options)
        assert (outcome.code, outcome.sentence) == (code, sentence)


def test_tag_directories_through_the_kernel(repository: Repository, tmp_path: Path) -> None:
    state = repository.state
    done(state, "tag", "add", FQRN, "first", "2")
    done(state, "tag", "directories", FQRN, "--on")
    with mounted(state, FQRN, tmp_path / "mnt") as target:
        assert sorted(os.listdir(target)) == ["one", "two"]
        place = target / ".cvmfs" / "snapshots"
        assert os.listdir(place) == ["first"]
        assert os.listdir(place / "first") == ["one"]
        assert (place / "first" / "one").read_bytes() == b"first"
        assert (target / "one").read_bytes() == b"third"


def test_a_repository_that_shows_tags_from_its_beginning(tmp_path: Path) -> None:
    state, storage = tmp_path / "state", str(tmp_path / "storage")
    done(state, "create", FQRN, "--storage", storage, "--tag-directories")
    done(state, "tag", "add", FQRN, "empty")
    assert done(state, "ls", FQRN, "/.cvmfs/snapshots").stdout == "empty\n"
    assert done(state, "check", FQRN, "--hash").stdout == f"{FQRN}: no errors, 0 warnings\n"


def test_the_stock_repository_continued(tmp_path: Path) -> None:
    """The stock server made tags, tag directories, and a history that was collected once; mica goes on from there."""
    clean = f"{STOCK}: no errors, 0 warnings\n"
    state = continue_stock(tmp_path)
    former = tags(state, STOCK)
    assert differences(state, STOCK, "v5-hardlinks") == [("/after-virtual", "added")]
    done(state, "tag", "add", STOCK, "mine", "8", "-m", "named by mica")
    assert tags(state, STOCK) == {**former, "mine": 8, "trunk": 12, "trunk-previous": 11}
    assert done(state, "check", STOCK, "--hash").stdout == clean
    names = set(former) - {"trunk", "trunk-previous"}
    assert set(done(state, "ls", STOCK, "/.cvmfs/snapshots").stdout.split()) == names | {"mine"}
    done(state, "tag", "rm", STOCK, "named-later", "v3-uncompressed")
    done(state, "rollback", STOCK, "v5-hardlinks")
    assert tags(state, STOCK) == {
        "v1-base": 2, "v4-directio": 6, "mine": 8, "v5-hardlinks": 14, "trunk": 15,
    }  # fmt: skip
    assert differences(state, STOCK, "11") == [("/after-virtual", "removed")]
    assert differences(state, STOCK, "9") == []
    assert done(state, "check", STOCK, "--hash").stdout == clean
    done(state, "rollback", STOCK, "11")
    assert differences(state, STOCK, "11") == []
    assert done(state, "check", STOCK, "--hash").stdout == clean
    missing = mica(state, "repo", "rollback", STOCK, "7")
    assert missing.sentence.startswith(f"Revision 7 of {STOCK} is not there any more: data/9c/")
    with mounted(state, STOCK, tmp_path / "mnt", "--tag", "v1-base") as target:
        assert not (target / "after-virtual").exists()
        assert attribute(target, "user.revision") == "2"
