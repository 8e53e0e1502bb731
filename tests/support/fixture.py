"""The repository that the stock server made, beside this checkout: `../shared/fixtures/cvmfs-2.12` (its README)."""

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa
from tests.support.tools import missing

from mica.repo.signing import parse_public_key
from mica.store.local import LocalStore

FQRN = "test.example.org"
_PLACE = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "cvmfs-2.12"


class ExpectedRow(NamedTuple):
    """A line of expected.tsv; columns as text where their form is the point."""

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: str
    target: bytes
    links: int
    rdev: str
    sha256: str
    xattrs: dict[bytes, bytes]
    group: bytes


class Fixture(NamedTuple):
    root: Path

    @property
    def storage(self) -> Path:
        return self.root / "cvmfs" / FQRN

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.storage)

    @property
    def master_key(self) -> rsa.RSAPublicKey:
        return parse_public_key(self.key("pub"), "the fixture's key")

    def key(self, kind: str) -> bytes:
        return (self.root / "keys" / f"{FQRN}.{kind}").read_bytes()

    def extra(self, name: str) -> bytes:
        return (self.root / "extra" / name).read_bytes()

    def expected(self) -> list[ExpectedRow]:
        lines = (self.root / "expected.tsv").read_text("ascii").splitlines()
        return [_row(line.split("\t")) for line in lines[1:]]


def stock_fixture() -> Fixture:
    """The fixture; without it the test fails under CI and is skipped elsewhere."""
    if not _PLACE.is_dir():
        missing(f"the stock repository is missing: put it to {os.path.relpath(_PLACE, Path(__file__).parents[2])}")
    return Fixture(_PLACE)


def continue_stock(place: Path) -> Path:
    """The state directory of a release manager that goes on with the stock server's repository, copied to a place."""
    fixture, storage, state = stock_fixture(), place / "storage", place / "state"
    shutil.copytree(fixture.storage, storage)
    with LocalStore(storage) as store:
        store.create()  # directories without a file are not in the fixture
    shutil.copytree(fixture.root / "keys", place / "keys")
    home = state / "repositories" / FQRN
    home.mkdir(parents=True)
    settings = f'fqrn = "{FQRN}"\nstorage = "{storage}"\nkeys = "{place}/keys"\n'
    (home / "repository.toml").write_text(settings)
    return state


def unescape(text: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), text.encode("ascii"))


def _row(columns: list[str]) -> ExpectedRow:
    path, kind, mode, uid, gid, size, mtime, target, links, rdev, sha256, xattrs, group = columns
    pairs = [pair.split("=") for pair in xattrs.split(";") if pair]
    return ExpectedRow(
        unescape(path), kind, int(mode, 8), int(uid), int(gid), int(size), mtime, unescape(target), int(links),
        rdev, sha256, {unescape(name): bytes.fromhex(value) for name, value in pairs}, unescape(group),
    )  # fmt: skip
