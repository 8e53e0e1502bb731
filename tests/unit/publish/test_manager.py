"""The release manager: what it opens and refuses, one publisher at a time, renewed signatures, new keys."""

import datetime
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, findings, make_repository, read_back

from mica.digest import Suffix
from mica.errors import IntegrityError, MicaError, NotFoundError, TemporaryError, UserError
from mica.publish.manager import ReleaseManager, create_repository
from mica.publish.resigning import resign
from mica.publish.settings import RepositorySettings
from mica.publish.transaction import Transaction
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.signing import fingerprint, new_certificate, new_key, parse_certificate, parse_private_key, private_pem
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import Whitelist, parse_whitelist, sign_whitelist

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def add(transaction: Transaction, name: bytes) -> None:
    transaction.catalogs.put(b"/" + name, transaction.store_file(name, b"content"))


def published(repository: Repository) -> Manifest:
    """The manifest in the storage, believed or not."""
    return parse_manifest((repository.storage / MANIFEST).read_bytes(), "it")[0]


def whitelist_of(repository: Repository) -> Whitelist:
    return parse_whitelist((repository.storage / WHITELIST).read_bytes(), "it")[0]


def home(repository: Repository) -> Path:
    return repository.state / "repositories" / FQRN


def refusal(repository: Repository) -> MicaError:
    """Why the newest revision cannot be read, nor a new one be published."""
    with repository.manager() as manager:
        with pytest.raises(MicaError) as looking:
            manager.head()
        with pytest.raises(MicaError) as publishing, manager.transaction():
            pass
    assert (type(publishing.value), str(publishing.value)) == (type(looking.value), str(looking.value))
    return looking.value


def test_a_repository_that_is_not_there_is_not_opened(tmp_path: Path, repository: Repository) -> None:
    with pytest.raises(NotFoundError) as missing:
        ReleaseManager.open(repository.state, "other.example.org")
    assert str(missing.value) == f"There is no repository other.example.org under {repository.state}."
    assert missing.value.hint == f"Known here: {FQRN}."
    with pytest.raises(NotFoundError) as missing:
        ReleaseManager.open(tmp_path / "empty", FQRN)
    assert missing.value.hint == f"Create it: mica repo create {FQRN} --storage DIR"


@pytest.mark.parametrize(("damage", "why"), [(b"fqrn = ", "Invalid value"), (b"", "'fqrn' is missing")])
def test_damaged_settings_are_named(repository: Repository, damage: bytes, why: str) -> None:
    path = home(repository) / "repository.toml"
    path.write_bytes(damage)
    with pytest.raises(UserError) as failure:
        repository.manager()
    assert str(failure.value).startswith(f"{path} is not a valid repository setting: {why}")


def test_a_storage_that_is_not_there_is_named(repository: Repository) -> None:
    repository.storage.rename(repository.storage.with_name("elsewhere"))
    with repository.manager() as manager, pytest.raises(UserError) as failure:
        manager.head()
    assert str(failure.value) == f"The storage directory {repository.storage} is not there."
    assert failure.value.hint == "Is its file system mounted?"
    assert type(refusal(repository)) is UserError


@pytest.mark.parametrize("kind", [MANIFEST, WHITELIST, "certificate"])
def test_a_published_file_that_is_missing_is_named(repository: Repository, kind: str) -> None:
    path = published(repository).certificate.object_path(Suffix.CERTIFICATE) if kind == "certificate" else kind
    (repository.storage / path).unlink()
    error = refusal(repository)
    assert type(error) is NotFoundError
    assert str(error) == f"{path} is not in {repository.storage}."


def test_damaged_published_files_are_named(repository: Repository) -> None:
    manifest = repository.storage / MANIFEST
    whole = manifest.read_bytes()
    for damage, sentence in (
        (b"", f"The manifest of {FQRN} from {repository.storage} is not signed: it has no line '--'."),
        (bytes(70_000), f"{MANIFEST} from {repository.storage} has more than the 65536 bytes it may have."),
        (
            whole[:-1] + bytes([whole[-1] ^ 1]),
            f"The manifest of {FQRN} from {repository.storage} has a wrong signature.",
        ),
    ):
        manifest.write_bytes(damage)
        error = refusal(repository)
        assert (type(error), str(error)) == (IntegrityError, sentence)


def test_a_key_file_that_is_missing_or_damaged_is_named_and_not_quoted(repository: Repository) -> None:
    key = repository.keys / f"{FQRN}.key"
    content = key.read_bytes()
    key.unlink()
    with pytest.raises(NotFoundError) as missing, repository.manager() as manager, manager.transaction():
        pass
    assert str(missing.value) == f"The key file {key} of {FQRN} is missing."
    key.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError) as damaged, repository.manager() as manager, manager.transaction():
        pass
    assert str(damaged.value) == f"The key of {FQRN} is not an unencrypted PEM private key."
    assert published(repository).revision == 1


def test_a_second_publisher_is_refused_and_does_no_harm(repository: Repository, tmp_path: Path) -> None:
    with repository.manager() as first, repository.manager() as second:
        with first.transaction() as transaction:
            add(transaction, b"first")
            for publishing in (second.transaction, lambda: second.transaction(wait_s=0.0)):
                with pytest.raises(TemporaryError) as refused, publishing():
                    pass
                assert str(refused.value).startswith(f"Repository {FQRN} is in use by ")
                assert refused.value.hint == "Try again when it is done."
            with pytest.raises(TemporaryError, match=f"Repository {FQRN} is in use"):
                resign(second)
            with second.snapshot() as catalogs:
                assert catalogs.find(b"/first") is None, "a reader needs no lock and sees the old revision"
        with second.transaction() as transaction:
            add(transaction, b"second")
    assert set(read_back(repository, tmp_path / "cache")) == {b"", b"/first", b"/second"}
    assert published(repository).revision == 3
    assert findings(repository, tmp_path) == []


def test_a_second_publisher_may_wait_and_builds_upon_the_first(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one ends when the second one has found the lock taken."""
    started, waiting = threading.Event(), threading.Event()
    pause = time.sleep

    def tell(seconds: float) -> None:
        waiting.set()
        pause(seconds)

    def publish_first() -> None:
        with repository.manager() as manager, manager.transaction() as transaction:
            add(transaction, b"first")
            started.set()
            assert waiting.wait(60)

    thread = threading.Thread(target=publish_first)
    thread.start()
    assert started.wait(60)
    monkeypatch.setattr("mica.files.time.sleep", tell)
    with repository.manager() as manager, manager.transaction(wait_s=60) as transaction:
        add(transaction, b"second")
    thread.join()
    assert waiting.is_set()
    assert set(read_back(repository, tmp_path / "cache")) == {b"", b"/first", b"/second"}
    assert published(repository).revision == 3


def test_what_a_killed_publisher_left_is_removed_and_nothing_else(repository: Repository) -> None:
    left = [
        home(repository) / "work/catalog-1",
        home(repository) / ".reflog.chksum.1-1.tmp",
        repository.storage / ".cvmfspublished.1-1.tmp",
        repository.storage / "data/txn/1-object",
    ]
    kept = [home(repository) / "layers/one.json", repository.storage / "robots.txt"]
    (home(repository) / "layers").mkdir()
    for path in (*left, *kept):
        path.touch()
    with repository.manager() as manager, manager.transaction() as transaction:
        assert [path for path in left if path.exists()] == []
        transaction.give_up()
    assert all(path.exists() for path in kept)


def test_a_directory_is_asked_for_by_name_and_made_by_its_user(repository: Repository) -> None:
    with repository.manager() as manager:
        for name in ("layers", "other"):
            assert manager.directory(name) == home(repository) / name
            assert not manager.directory(name).exists()


def test_a_look_at_the_newest_revision_changes_nothing(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    def look(manager: ReleaseManager) -> None:
        with manager.snapshot() as catalogs:
            root = catalogs.root_catalog
            assert root.revision == 1
            catalogs.remove(b"/file")
            raise ZeroDivisionError

    before = {path: path.stat().st_mtime_ns for path in repository.storage.rglob("*")}
    with repository.manager() as manager, pytest.raises(ZeroDivisionError):
        look(manager)
    assert {path: path.stat().st_mtime_ns for path in repository.storage.rglob("*")} == before
    assert list(place.iterdir()) == []


def test_meta_info_stays_from_revision_to_revision(repository: Repository) -> None:
    first = published(repository)
    with repository.manager() as manager, manager.transaction() as transaction:
        add(transaction, b"file")
    assert published(repository).metainfo == first.metainfo


def test_resigning_renews_the_whitelist_of_the_same_revision(repository: Repository) -> None:
    first = published(repository)
    expire(repository)
    assert "expired" in str(refusal(repository))
    with repository.manager() as manager:
        renewed = resign(manager, days=7)
        assert manager.head() == renewed == published(repository)
    assert (renewed.revision, renewed.root_catalog) == (first.revision, first.root_catalog)
    assert renewed.published_at >= first.published_at
    whitelist = whitelist_of(repository)
    assert whitelist.created is not None
    assert whitelist.expires - whitelist.created == datetime.timedelta(days=7)


def expire(repository: Repository) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    write_whitelist(repository, replace(whitelist_of(repository), created=past, expires=past))


def write_whitelist(repository: Repository, whitelist: Whitelist) -> None:
    master = parse_private_key((repository.keys / f"{FQRN}.masterkey").read_bytes(), "key")
    (repository.storage / WHITELIST).write_bytes(sign_whitelist(whitelist, master))


def test_revocations_stay_and_never_reach_the_newest_revision(repository: Repository) -> None:
    with repository.manager() as manager:
        with manager.transaction() as transaction:
            add(transaction, b"file")
        resign(manager, revoke_below=2)
        assert whitelist_of(repository).oldest_revision == 2
        resign(manager)
        assert whitelist_of(repository).oldest_revision == 2
        before = (repository.storage / WHITELIST).read_bytes()
        with pytest.raises(UserError) as refused:
            resign(manager, revoke_below=3)
    assert str(refused.value) == (f"Revision 2 of {FQRN} is the newest: revoking all below 3 would revoke it too.")
    assert (repository.storage / WHITELIST).read_bytes() == before


def test_a_lost_whitelist_is_written_again_and_a_damaged_one_is_not(repository: Repository) -> None:
    """Nobody can tell what a damaged one revoked."""
    path = repository.storage / WHITELIST
    with repository.manager() as manager:
        path.unlink()
        resign(manager)
        assert manager.head().revision == 1
        path.write_bytes(b"damaged")
        with pytest.raises(IntegrityError, match=f"The whitelist of {FQRN} is not signed"):
            resign(manager)
    assert path.read_bytes() == b"damaged"


def renew_key(repository: Repository) -> str:
    """A new key and certificate, as after the old one was stolen; the fingerprint of the certificate."""
    key = new_key()
    pem = new_certificate(key, FQRN, NOW)
    for kind, content in (("key", private_pem(key)), ("crt", pem)):
        (repository.keys / f"{FQRN}.{kind}").write_bytes(content)
    return fingerprint(parse_certificate(pem, "it"))


@pytest.mark.parametrize("before", [lambda repository: None, expire], ids=["valid", "expired"])
def test_resigning_takes_a_new_key_and_certificate(
    repository: Repository, tmp_path: Path, before: Callable[[Repository], None]
) -> None:
    first = published(repository)
    before(repository)
    renewed = renew_key(repository)
    with repository.manager() as manager:
        assert resign(manager).certificate != first.certificate
        assert manager.head().revision == 1
    assert whitelist_of(repository).fingerprints == (renewed,), "the old certificate signs nothing any more"
    assert findings(repository, tmp_path) == []


def test_resigning_with_a_new_key_goes_on_where_it_failed(repository: Repository) -> None:
    """Until the manifest is signed again, readers find its old certificate on the whitelist."""
    old, renewed = whitelist_of(repository).fingerprints, renew_key(repository)
    checksum = home(repository) / "reflog.chksum"
    checksum.unlink()
    checksum.mkdir()
    with repository.manager() as manager:
        with pytest.raises(UserError, match=r"Cannot write .*reflog.chksum"):
            resign(manager)
        assert manager.head().revision == 1
        assert whitelist_of(repository).fingerprints == (renewed, *old)
        checksum.rmdir()
        resign(manager)
        assert manager.head().revision == 1
    assert whitelist_of(repository).fingerprints == (renewed,)


def test_a_manifest_of_a_key_that_was_never_listed_is_not_signed_again(repository: Repository) -> None:
    write_whitelist(repository, replace(whitelist_of(repository), fingerprints=()))
    files = [(repository.storage / name, (repository.storage / name).read_bytes()) for name in (WHITELIST, MANIFEST)]
    renew_key(repository)
    with repository.manager() as manager, pytest.raises(IntegrityError, match="is not on its whitelist"):
        resign(manager)
    assert all(path.read_bytes() == content for path, content in files)


@pytest.mark.parametrize("kind", ["key", "masterkey"])
def test_a_key_of_somebody_else_signs_nothing(repository: Repository, kind: str) -> None:
    """No client would believe the result."""
    files = [(repository.storage / name, (repository.storage / name).read_bytes()) for name in (WHITELIST, MANIFEST)]
    (repository.keys / f"{FQRN}.{kind}").write_bytes(private_pem(new_key()))
    with repository.manager() as manager, pytest.raises(MicaError) as refused:
        resign(manager)
    expected = {"key": "does not belong to its certificate", "masterkey": "does not belong to the public key of"}
    assert expected[kind] in str(refused.value)
    if kind == "key":
        assert "does not belong to its certificate" in str(publishing_refused(repository))
    assert all(path.read_bytes() == content for path, content in files)


def publishing_refused(repository: Repository) -> MicaError:
    with pytest.raises(MicaError) as refused, repository.manager() as manager, manager.transaction():
        pass
    return refused.value


def test_made_keys_are_private_and_those_that_exist_are_used(tmp_path: Path) -> None:
    settings = RepositorySettings(FQRN, str(tmp_path / "storage"), tmp_path / "state/repositories" / FQRN / "keys")
    create_repository(tmp_path / "state", settings, {})
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in settings.keys.iterdir()}
    assert modes == {f"{FQRN}.{kind}": 0o400 if "key" in kind else 0o444 for kind in ("masterkey", "pub", "key", "crt")}
    assert stat.S_IMODE((tmp_path / "state/repositories" / FQRN).stat().st_mode) == 0o700
    master = settings.key_path("masterkey").read_bytes()
    second = replace(settings, storage=str(tmp_path / "second"))
    create_repository(tmp_path / "other", second, {})
    assert settings.key_path("masterkey").read_bytes() == master


def test_what_exists_already_is_left_alone(repository: Repository, tmp_path: Path) -> None:
    manifest = (repository.storage / MANIFEST).read_bytes()
    for state, storage, sentence in (
        (repository.state, tmp_path / "new", f"Repository {FQRN} exists already under {repository.state}."),
        (tmp_path / "state", repository.storage, f"{repository.storage} already holds a published repository."),
    ):
        with pytest.raises(UserError) as refused:
            create_repository(state, RepositorySettings(FQRN, str(storage), tmp_path / "keys"), {})
        assert str(refused.value) == sentence
    assert (repository.storage / MANIFEST).read_bytes() == manifest
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("name", ["", "nodot", "../up.org", "a b.org", "x" * 57 + ".org", ".hidden.org"])
def test_a_name_that_no_client_would_take_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        create_repository(
            tmp_path / "state", RepositorySettings(name, str(tmp_path / "storage"), tmp_path / "keys"), {}
        )
    assert str(refused.value) == f"{name!r} cannot be the name of a repository."
    assert list(tmp_path.iterdir()) == []
