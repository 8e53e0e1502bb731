"""What a server showed before is not shown again, whatever happened to the cache meanwhile."""

import shutil
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.webserver import serving

pytestmark = pytest.mark.system


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "publisher")


def listed(repository: Repository, node: Path, url: str, *options: str) -> tuple[int, str]:
    key = repository.keys / f"{FQRN}.pub"
    done = mica(node, "repo", "ls", FQRN, "--url", url, "--key", str(key), *options)
    return done.code, done.stdout if done.code == 0 else done.sentence


def test_an_emptied_cache_and_a_damaged_record(repository: Repository, tmp_path: Path) -> None:
    node, pointer = tmp_path / "node", repository.storage / ".cvmfspublished"
    old = pointer.read_bytes()
    ingest(repository, member(b"file", b"x") + END)
    new = pointer.read_bytes()
    record = node / "trust" / FQRN
    with serving(repository.storage) as server:
        assert listed(repository, node, server.url) == (0, "file\n")
        pointer.write_bytes(old)
        shutil.rmtree(node / "cache")
        code, sentence = listed(repository, node, server.url)
        assert (code, "already known" in sentence) == (3, True)
        pointer.write_bytes(new)
        known = record.read_bytes()
        record.write_bytes(known[:-20])
        code, sentence = listed(repository, node, server.url)
        assert (code, sentence) == (3, f"This host's trust record of {FQRN} is damaged: {record}.")
        record.write_bytes(known)
        assert listed(repository, node, server.url) == (0, "file\n")
    assert listed(repository, node, server.url) == (0, "file\n"), "off line, by what is known"


def test_a_record_of_an_earlier_version_counts(repository: Repository, tmp_path: Path) -> None:
    node, pointer = tmp_path / "node", repository.storage / ".cvmfspublished"
    old = pointer.read_bytes()
    ingest(repository, member(b"file", b"x") + END)
    with serving(repository.storage) as server:
        assert listed(repository, node, server.url)[0] == 0
        record, former = node / "trust" / FQRN, tmp_path / "cache/repositories" / FQRN
        former.parent.mkdir(parents=True)
        record.rename(former)
        pointer.write_bytes(old)
        code, sentence = listed(repository, node, server.url, "--cache", str(tmp_path / "cache"))
        assert (code, "already known" in sentence) == (3, True)
        assert record.exists()
        assert not former.exists()


def test_what_the_owner_revokes_stays_revoked(repository: Repository, tmp_path: Path) -> None:
    state, storage = repository.state, repository.storage
    old, early = (storage / ".cvmfspublished").read_bytes(), (storage / ".cvmfswhitelist").read_bytes()
    ingest(repository, member(b"file", b"x") + END)
    assert mica(state, "repo", "resign", FQRN, "--revoke-below", "3").code == 1
    assert mica(state, "repo", "resign", FQRN, "--revoke-below", "2").code == 0
    assert mica(state, "repo", "resign", FQRN).code == 0
    assert mica(state, "repo", "check", FQRN).code == 0
    with serving(storage) as server:
        assert listed(repository, tmp_path / "node", server.url) == (0, "file\n")
        (storage / ".cvmfspublished").write_bytes(old)
        code, sentence = listed(repository, tmp_path / "fresh", server.url)
        assert (code, f"Revision 1 of {FQRN} is revoked" in sentence) == (3, True)
        (storage / ".cvmfswhitelist").write_bytes(early)
        assert listed(repository, tmp_path / "fresh", server.url)[0] == 0, "whoever knows nothing cannot tell"


def test_a_revoked_revision(repository: Repository, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[node]\nblacklists = ["{tmp_path}/blacklist"]\n')
    (tmp_path / "blacklist").write_text(f"# see the mail of today\n<{FQRN} 2\n")
    with serving(repository.storage) as server:
        code, sentence = listed(repository, tmp_path / "node", server.url, "--config", str(config))
        assert (code, "the blacklist refuses all below 2" in sentence) == (3, True)
        ingest(repository, member(b"file", b"x") + END)
        assert listed(repository, tmp_path / "node", server.url, "--config", str(config)) == (0, "file\n")
