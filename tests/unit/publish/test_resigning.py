"""Whitelists that are signed elsewhere, and keys that change: accepted as a whole, or refused without a change."""

import datetime
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.repositories import FQRN, Repository, findings, make_repository, shared_key_files
from tests.unit.publish.test_manager import add, published, whitelist_of, write_whitelist

import mica.files
import mica.publish.keyfiles
import mica.publish.transaction
import mica.store.local
from mica.errors import IntegrityError, MicaError, NotFoundError, UserError
from mica.publish.keyfiles import KeyFiles, make_master_key, read_private_key
from mica.publish.manager import ReleaseManager
from mica.publish.resigning import accept, days_left, make_request, resign
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.signingrequest import (
    SignedAnswer,
    SigningRequest,
    format_answer,
    format_request,
    parse_answer,
    parse_request,
    sign_request,
)
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import sign_whitelist


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def master(repository: Repository, tmp_path: Path) -> Path:
    """The master key, which is on another machine."""
    return (repository.keys / f"{FQRN}.masterkey").rename(tmp_path / "away.masterkey")


def publish(repository: Repository, name: bytes) -> None:
    with repository.manager() as manager, manager.transaction() as transaction:
        add(transaction, name)


def requested(repository: Repository, **options: int) -> SigningRequest:
    with repository.manager() as manager:
        return parse_request(format_request(make_request(manager, **options)), "it")


def signed(request: SigningRequest, master: Path) -> SignedAnswer:
    answer = sign_request(request, read_private_key(master, "The key"), "The key")
    return parse_answer(format_answer(answer), "it")


def accepted(repository: Repository, answer: SignedAnswer) -> None:
    with repository.manager() as manager:
        accept(manager, answer, "it")
        manager.head()


def pointers(repository: Repository) -> dict[str, bytes]:
    keys = {path.name: path.read_bytes() for path in repository.keys.iterdir()}
    return keys | {name: (repository.storage / name).read_bytes() for name in (WHITELIST, MANIFEST)}


def refusal(repository: Repository, answer: SignedAnswer) -> MicaError:
    """Why it is not accepted. Nothing changes."""
    before = pointers(repository)
    with pytest.raises(MicaError) as refused, repository.manager() as manager:
        accept(manager, answer, "it")
    assert pointers(repository) == before
    return refused.value


def test_without_the_master_key_it_is_said_how_to_sign(repository: Repository, master: Path) -> None:
    with pytest.raises(NotFoundError) as missing, repository.manager() as manager:
        resign(manager)
    assert str(missing.value).startswith(f"The master key of {FQRN} is not on this machine (")
    assert "--request" in missing.value.hint
    publish(repository, b"file")
    with repository.manager() as manager:
        resign(manager, days=3, master=manager.keys.master_key(master))
        assert 2 < days_left(manager) <= 3


def test_a_whitelist_that_was_signed_elsewhere(repository: Repository, master: Path, tmp_path: Path) -> None:
    request = requested(repository, days=5, revoke_below=1)
    publish(repository, b"file")  # meanwhile
    answer = signed(request, master)
    accepted(repository, answer)
    assert whitelist_of(repository) == request.whitelists[0]
    assert published(repository).revision == 2
    accepted(repository, answer)  # once more, as after a lost connection
    assert whitelist_of(repository) == request.whitelists[0]
    assert findings(repository, tmp_path) == []


def test_an_expired_whitelist_is_renewed_from_elsewhere(repository: Repository, master: Path) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    here = (repository.keys / f"{FQRN}.masterkey").write_bytes(master.read_bytes())
    assert here
    write_whitelist(repository, replace(whitelist_of(repository), created=past, expires=past))
    (repository.keys / f"{FQRN}.masterkey").unlink()
    with repository.manager() as manager:
        assert days_left(manager) < 0
    accepted(repository, signed(requested(repository), master))


def test_an_older_answer_is_refused(repository: Repository, master: Path) -> None:
    """Accepting it would bring back what a newer one revoked."""
    older, newer = signed(requested(repository), master), requested(repository, revoke_below=1)
    newer = replace(newer, whitelists=tuple(replace(one, created=LATER) for one in newer.whitelists))
    accepted(repository, signed(newer, master))
    error = refusal(repository, older)
    assert (type(error), str(error)) == (
        UserError, "it is older than the published whitelist: it could bring back what that one revoked.",
    )  # fmt: skip
    assert error.hint.startswith("Write a new request")


LATER = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)).replace(microsecond=0)


def test_an_answer_of_the_same_second_is_refused_too(repository: Repository, master: Path) -> None:
    first, second = requested(repository), requested(repository, revoke_below=1)
    second = replace(
        second, whitelists=tuple(replace(one, created=first.whitelists[0].created) for one in second.whitelists)
    )
    accepted(repository, signed(second, master))
    assert "is older than" in str(refusal(repository, signed(first, master)))


def test_an_answer_for_another_repository_is_refused(repository: Repository, master: Path, tmp_path: Path) -> None:
    other = make_repository(tmp_path / "other", fqrn="other.example.org")
    answer = signed(requested(other), master)
    error = refusal(repository, answer)
    assert str(error) == f"it is for the repository other.example.org and not for {FQRN}."
    # Also if somebody changes the name on the outside.
    with pytest.raises(IntegrityError, match="has a whitelist of another repository"):
        parse_answer(format_answer(replace(answer, fqrn=FQRN)), "it")


def test_an_answer_by_another_key_is_refused(repository: Repository, tmp_path: Path) -> None:
    stranger = make_master_key(tmp_path / "stranger", tmp_path / "stranger.pub")
    request = requested(repository)
    with pytest.raises(UserError, match="is not a master key of"):
        signed(request, tmp_path / "stranger")
    answer = SignedAnswer(FQRN, tuple(sign_whitelist(one, stranger) for one in request.whitelists))
    error = refusal(repository, answer)
    assert (type(error), str(error)) == (IntegrityError, f"it is not signed by the master key of {FQRN}.")
    with repository.manager() as manager, pytest.raises(UserError, match="does not belong to the public key"):
        manager.keys.master_key(tmp_path / "stranger")


def test_an_answer_that_expired_on_its_way_is_refused(repository: Repository, master: Path) -> None:
    request = requested(repository)
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    late = replace(request, whitelists=tuple(replace(one, expires=past) for one in request.whitelists))
    error = refusal(repository, signed(late, master))
    assert str(error).startswith("The whitelist in it expired at ")


def test_an_answer_without_our_certificate_is_refused(repository: Repository, master: Path) -> None:
    request = requested(repository)
    other = replace(
        request, whitelists=tuple(replace(one, fingerprints=("AB:" * 19 + "CD",)) for one in request.whitelists)
    )
    assert str(refusal(repository, signed(other, master))) == f"it does not name the certificate of {FQRN}."


def test_an_answer_that_revokes_the_newest_revision_is_refused(repository: Repository, master: Path) -> None:
    request = requested(repository)
    more = replace(request, whitelists=tuple(replace(one, oldest_revision=2) for one in request.whitelists))
    assert "would revoke it too" in str(refusal(repository, signed(more, master)))


def stage(manager: ReleaseManager) -> str:
    manager.keys.make_next_signer()
    following = manager.keys.next_signer()
    assert following is not None
    return following.fingerprint


def test_a_new_key_is_used_from_its_whitelist_on(repository: Repository, master: Path, tmp_path: Path) -> None:
    (old,) = whitelist_of(repository).fingerprints
    with repository.manager() as manager:
        new = stage(manager)
        assert stage(manager) == new, "one that was begun is not begun again"
    publish(repository, b"one")  # by the old key, as long as the new one is on no whitelist
    request = requested(repository)
    assert [one.fingerprints for one in request.whitelists] == [(new, old), (new,)]
    accepted(repository, signed(request, master))
    assert whitelist_of(repository).fingerprints == (new,)
    assert not (repository.keys / f"{FQRN}.next.key").exists()
    with repository.manager() as manager:
        assert manager.keys.signer().fingerprint == new
    publish(repository, b"two")
    assert findings(repository, tmp_path) == []


def test_an_answer_of_before_a_new_key_was_made(repository: Repository, master: Path) -> None:
    answer = signed(requested(repository), master)
    with repository.manager() as manager:
        stage(manager)
    accepted(repository, answer)
    assert (repository.keys / f"{FQRN}.next.key").exists()
    publish(repository, b"one")


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_change_of_the_key_that_is_killed_at_any_point_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """At each file that is replaced: clients find a revision that they believe, and repeating the call ends it."""
    replace_file = mica.files.replace_file
    left = [10**9]

    def counting(action: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise _KilledError
            return action(*arguments, **options)

        return counted

    for module in (mica.publish.keyfiles, mica.publish.transaction, mica.store.local):
        monkeypatch.setattr(module, "replace_file", counting(replace_file))
    monkeypatch.setattr(mica.publish.keyfiles, "new_key", functools.cache(mica.publish.keyfiles.new_key))
    number, was_killed = 0, True
    while was_killed:
        left[0] = 10**9
        repository = make_repository(tmp_path / f"{number}")
        key = repository.keys / f"{FQRN}.masterkey"
        with repository.manager() as manager:
            new = stage(manager)
        answer = signed(requested(repository), key) if elsewhere else None

        def change(repository: Repository = repository, answer: SignedAnswer | None = answer) -> None:
            with repository.manager() as manager:
                if answer is None:
                    resign(manager)
                else:
                    accept(manager, answer, "it")

        left[0] = number
        try:
            change()
            was_killed = False
        except _KilledError:
            left[0] = 10**9
            with repository.manager() as manager:
                manager.head()
            change()
        left[0] = 10**9
        assert whitelist_of(repository).fingerprints == (new,), number
        assert findings(repository, tmp_path) == [], number
        publish(repository, b"file")
        number += 1
    assert number == 8


def test_a_new_master_key_signs_when_clients_have_both(repository: Repository, tmp_path: Path) -> None:
    old_public = shared_key_files()["pub"]
    new_public = tmp_path / "new.pub"
    make_master_key(tmp_path / "new.masterkey", new_public)
    with repository.manager() as manager:
        with pytest.raises(UserError, match="does not belong to the public key"):
            manager.keys.master_key(tmp_path / "new.masterkey")
        manager.keys.announce_master_key(new_public)
        resign(manager)  # still by the old one
        assert len(manager.keys.public_keys()) == 2
    request = requested(repository)
    assert len(request.master_keys) == 2
    accepted(repository, signed(request, tmp_path / "new.masterkey"))
    assert (repository.keys / f"{FQRN}.pub").read_bytes() == new_public.read_bytes() != old_public
    assert not (repository.keys / f"{FQRN}.next.pub").exists()
    with repository.manager() as manager:
        assert len(manager.keys.public_keys()) == 1
        with pytest.raises(UserError, match="does not belong to the public key"):
            resign(manager)
        resign(manager, master=manager.keys.master_key(tmp_path / "new.masterkey"))
    assert findings(repository, tmp_path) == []


def test_a_public_key_that_is_none_or_the_present_one_is_not_announced(repository: Repository, tmp_path: Path) -> None:
    keys = KeyFiles(repository.manager().settings)
    for file, word in (
        (repository.keys / f"{FQRN}.pub", "have already"),
        (repository.keys / f"{FQRN}.masterkey", "is not a PEM public key"),
        (tmp_path / "missing", "Cannot read the public key"),
    ):
        with pytest.raises(UserError, match=word):
            keys.announce_master_key(file)
    assert not keys.path("next.pub").exists()


def test_master_keys_are_never_overwritten(tmp_path: Path) -> None:
    make_master_key(tmp_path / "a.masterkey", tmp_path / "a.pub")
    with pytest.raises(UserError, match=r"a\.masterkey exists already"):
        make_master_key(tmp_path / "a.masterkey", tmp_path / "b.pub")
    with pytest.raises(UserError, match=r"a\.pub exists already"):
        make_master_key(tmp_path / "b.masterkey", tmp_path / "a.pub")
    assert (tmp_path / "a.masterkey").stat().st_mode & 0o777 == 0o400


def test_a_certificate_that_is_on_no_whitelist_publishes_nothing(repository: Repository) -> None:
    """No client would believe the new revision."""
    with repository.manager() as manager:
        stage(manager)
        manager.keys.take_next_signer()
        before = pointers(repository)
        with pytest.raises(UserError) as refused, manager.transaction():
            pass
        assert str(refused.value) == (
            f"The certificate {repository.keys / FQRN}.crt is not on the whitelist of {FQRN}."
        )
        assert pointers(repository) == before
        resign(manager)
    publish(repository, b"file")


def test_a_clock_that_went_back_does_not_make_an_older_whitelist(repository: Repository) -> None:
    """Clients take the one that was written later."""
    write_whitelist(repository, replace(whitelist_of(repository), created=LATER))
    with repository.manager() as manager:
        resign(manager)
    created = whitelist_of(repository).created
    assert created is not None
    assert created > LATER
