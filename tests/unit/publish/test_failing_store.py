"""A transaction whose store fails: whatever write it is, readers have the old revision or the new one, whole."""

import datetime
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.support.memorystore import InjectedError, MemoryStore
from tests.support.repositories import FQRN, SMALL_CHUNKS, shared_key_files

from mica.errors import NotFoundError
from mica.fetch.download import LocalFetcher
from mica.publish.catalogtree import directory_entry
from mica.publish.check import check_repository
from mica.publish.rules import ObjectRules
from mica.publish.transaction import REFLOG, Publication, Transaction
from mica.repo.entry import Entry
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.signing import fingerprint, parse_certificate, parse_private_key, parse_public_key
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import Whitelist, sign_whitelist
from mica.store.base import read_limited, read_pointer

RULES = ObjectRules(chunking=SMALL_CHUNKS)
FILES = 5


def whitelist() -> bytes:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    keys = shared_key_files()
    certificate = fingerprint(parse_certificate(keys["crt"], "certificate"))
    document = Whitelist(FQRN, now, now + datetime.timedelta(days=1), (certificate,), 0)
    return sign_whitelist(document, parse_private_key(keys["masterkey"], "key"), RULES.algorithm)


def head_of(store: MemoryStore) -> Manifest | None:
    try:
        return parse_manifest(read_limited(store, MANIFEST, 1 << 16), "The manifest")[0]
    except NotFoundError:
        return None


def publish(store: MemoryStore, work: Path, label: bytes) -> Manifest:
    """A revision with a new directory of new files."""
    keys = shared_key_files()
    publication = Publication(
        fqrn=FQRN, key=parse_private_key(keys["key"], "key"), certificate_pem=keys["crt"], metainfo=b"{}", ttl_s=60
    )
    replaces = read_pointer(store, MANIFEST, 1 << 16)
    head = head_of(store)
    with tempfile.TemporaryDirectory(dir=work) as place:
        transaction = Transaction(
            store, Path(place), RULES, publication, head,
            replaces=replaces, reflog_checksum=work / "reflog.chksum", garbage_collectable=True, auto_tag=False,
        )  # fmt: skip
        try:
            catalogs = transaction.catalogs
            if head is None:
                catalogs.begin(directory_entry(b""))
            catalogs.make_directories(b"/" + label, directory_entry(b""))
            for number in range(FILES):
                entry = stored_file(transaction, b"file %d" % number, label * (number + 1))
                catalogs.put(b"/%s/file %d" % (label, number), entry)
            return transaction.publish()
        finally:
            transaction.abandon()


def stored_file(transaction: Transaction, name: bytes, content: bytes) -> Entry:
    return transaction.store_file(name, content, mtime_s=1_600_000_000)


def master_key() -> rsa.RSAPublicKey:
    return parse_public_key(shared_key_files()["pub"], "key")


def faults_of(store: MemoryStore, work: Path) -> list[str]:
    """What the checker finds: nothing, if every path of the newest revision can be read."""
    found = check_repository(LocalFetcher(store), FQRN, [master_key()], objects="hash", work=work)
    return [finding.sentence for finding in found if finding.severity == "error"]


@pytest.fixture
def old(tmp_path: Path) -> MemoryStore:
    """A store with one revision."""
    store = MemoryStore({WHITELIST: whitelist()})
    publish(store, tmp_path, b"old")
    assert faults_of(store, tmp_path) == []
    return store


def writes_of_a_revision(old: MemoryStore, work: Path) -> list[tuple[str, str]]:
    store = MemoryStore(old.contents())
    publish(store, work, b"new")
    return store.writes


def test_the_manifest_comes_last_and_all_else_lasts_before(old: MemoryStore, tmp_path: Path) -> None:
    methods = writes_of_a_revision(old, tmp_path)
    assert methods[-3:] == [("replace", REFLOG), ("sync", ""), ("replace", MANIFEST)]
    assert {method for method, _ in methods[:-3]} == {"put"}
    assert len(methods) >= FILES + 3


@pytest.mark.parametrize("is_first", [True, False], ids=["first-revision", "second-revision"])
@pytest.mark.parametrize("late", [False, True], ids=["not-done", "done-without-an-answer"])
def test_a_write_that_fails_leaves_a_whole_revision(
    old: MemoryStore, tmp_path: Path, *, late: bool, is_first: bool
) -> None:
    before = {WHITELIST: whitelist()} if is_first else old.contents()
    counted = MemoryStore(before)
    publish(counted, tmp_path, b"new")
    total = len(counted.writes)
    for number in range(1, total + 1):
        store = MemoryStore(before)
        store.fail_at(number, late=late)
        with pytest.raises(InjectedError):
            publish(store, tmp_path, b"new")
        what = f"write {number} of {total}"
        assert (store.contents().get(MANIFEST) == before.get(MANIFEST)) == (not late or number < total), what
        if MANIFEST in store.contents():
            assert faults_of(store, tmp_path) == [], what
        # Another attempt finds nothing in its way.
        again = publish(store, tmp_path, b"again")
        assert head_of(store) == again
        assert faults_of(store, tmp_path) == [], what


def test_a_power_failure_leaves_a_whole_revision(old: MemoryStore, tmp_path: Path) -> None:
    total = len(writes_of_a_revision(old, tmp_path))
    seen = set()
    for number in range(1, total + 1):
        store = MemoryStore(old.contents())
        store.fail_at(number, late=True)
        with pytest.raises(InjectedError):
            publish(store, tmp_path, b"new")
        after = store.after_power_failure()
        assert faults_of(after, tmp_path) == [], f"write {number} of {total}"
        head = head_of(after)
        assert head is not None
        seen.add(head.revision)
        publish(after, tmp_path, b"again")
        assert faults_of(after, tmp_path) == [], f"write {number} of {total}"
    assert seen == {1, 2}
