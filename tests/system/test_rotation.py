"""Keys change while a repository is mounted: the mount goes on from revision to revision, whatever key signs them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.cli import Outcome, mica
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.tools import need_fuse
from tests.support.waiting import eventually
from tests.support.webserver import serving

pytestmark = pytest.mark.system


class Site(NamedTuple):
    """`away` is the machine with the master key: files only. `node` has the repository mounted on `mounted`."""

    repository: Repository
    away: Path
    node: Path
    mounted: Path

    @property
    def master(self) -> Path:
        return self.away / "now.masterkey"

    def manage(self, *arguments: str | Path) -> Outcome:
        done = mica(self.repository.state, *arguments)
        assert done.code == 0, done.stderr
        return done

    def resign_elsewhere(self, master: Path, *options: str) -> None:
        """The request goes to the other machine and its answer comes back."""
        request, answer = self.away / "request", self.away / "answer"
        self.manage("repo", "resign", FQRN, "--request", request, *options)
        done = mica(self.away / "nothing", "key", "sign", request, "--master-key", master, "-o", answer, "--yes")
        assert done.code == 0, done.stderr
        assert FQRN in done.stdout
        self.manage("repo", "resign", FQRN, "--accept", answer)
        request.unlink()
        answer.unlink()

    def shows_new_files(self, label: str) -> bool:
        """Whether the mount comes to the next revision."""
        ingest(self.repository, member(label.encode(), label.encode()) + END)
        return eventually(lambda: (self.mounted / label).exists() and (self.mounted / label).read_text() == label)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    need_fuse()
    repository = make_repository(tmp_path / "publisher", ttl_s=1)
    site = Site(repository, tmp_path / "away", tmp_path / "node", tmp_path / "mounted")
    for directory in (site.away, site.node / "keys", site.mounted):
        directory.mkdir(parents=True)
    (repository.keys / f"{FQRN}.masterkey").rename(site.master)
    shutil.copy(repository.keys / f"{FQRN}.pub", site.node / "keys/now.pub")
    with serving(repository.storage) as server:
        done = mica(site.node, "mount", FQRN, site.mounted, "--url", server.url, "--key", site.node / "keys")
        assert done.code == 0, done.stderr
        try:
            assert site.shows_new_files("begin")
            yield site
        finally:
            assert mica(site.node, "umount", site.mounted).code == 0


def test_both_keys_change_under_a_mount(site: Site) -> None:
    device = os.stat(site.mounted).st_dev
    keys = site.node / "keys"
    # The repository's key, by a master key on another machine.
    site.manage("repo", "resign", FQRN, "--request", site.away / "unused", "--new-key")
    assert site.shows_new_files("while-the-request-is-on-its-way")
    site.resign_elsewhere(site.master)
    assert site.shows_new_files("new-key")
    # The master key: first the clients get both.
    done = mica(site.away / "nothing", "key", "new", site.away / "next.masterkey")
    assert done.code == 0, done.stderr
    site.manage("repo", "resign", FQRN, "--master-key", site.master, "--next-key", site.away / "next.pub")
    shutil.copy(site.away / "next.pub", keys / "new")
    (keys / "new").rename(keys / "next.pub")  # never half of it
    assert site.shows_new_files("both-keys")
    site.resign_elsewhere(site.away / "next.masterkey")
    assert site.shows_new_files("next-key")
    (keys / "now.pub").unlink()
    assert site.shows_new_files("only-the-next-key")
    # And the repository's key once more, by the new master key.
    site.resign_elsewhere(site.away / "next.masterkey", "--new-key")
    assert site.shows_new_files("end")
    assert os.stat(site.mounted).st_dev == device, "it is still the same mount"
    check = mica(site.node, "repo", "ls", FQRN, "--url", str(site.repository.storage), "--key", keys, "--json")
    assert check.code == 0, check.stderr


def test_what_is_refused_harms_nothing(site: Site) -> None:
    stranger = site.away / "stranger.masterkey"
    assert mica(site.away, "key", "new", stranger).code == 0
    request, older = site.away / "request", site.away / "older"
    site.manage("repo", "resign", FQRN, "--request", older)
    again = mica(site.repository.state, "repo", "resign", FQRN, "--request", older)
    assert (again.code, again.sentence) == (1, f"Cannot write the request {older}: File exists.")
    done = mica(site.away, "key", "sign", older, "--master-key", stranger, "--yes")
    assert (done.code, done.sentence) == (
        1, f"The master key {stranger} is not a master key of {FQRN}: no client would accept its signature.",
    )  # fmt: skip
    done = mica(site.away, "key", "sign", older, "--master-key", site.master)
    assert (done.code, done.sentence) == (2, "Nobody can be asked here: give --yes if what is shown is to be signed.")
    assert f"repository            {FQRN}" in done.stdout, "it shows what it would sign"
    assert mica(site.away, "key", "sign", older, "--master-key", site.master, "--yes").code == 0
    site.resign_elsewhere(site.master, "--revoke-below", "1")
    before = (site.repository.storage / ".cvmfswhitelist").read_bytes()
    for answer, code, sentence in (
        (f"{older}.signed", 1, "is older than the published whitelist"),
        (older, 1, "is not an answer to a signing request"),
        (request, 1, "Cannot read the answer"),
    ):
        refused = mica(site.repository.state, "repo", "resign", FQRN, "--accept", answer)
        assert (refused.code, sentence in refused.sentence) == (code, True), refused.sentence
    refused = mica(site.repository.state, "repo", "resign", FQRN, "--master-key", stranger)
    assert (refused.code, "does not belong to the public key" in refused.sentence) == (1, True)
    refused = mica(site.repository.state, "repo", "resign", FQRN)
    assert (refused.code, "is not on this machine" in refused.sentence) == (1, True)
    assert mica(site.repository.state, "repo", "resign", FQRN, "--accept", older, "--days", "3").code == 2
    kept = mica(site.repository.state, "repo", "resign", FQRN, "--within", "10", "--json")
    assert (kept.code, '"renewed": false' in kept.stdout) == (0, True)
    assert (site.repository.storage / ".cvmfswhitelist").read_bytes() == before
    assert site.shows_new_files("still-there")
