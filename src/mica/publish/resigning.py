"""Renewing signatures: a new whitelist, and the newest revision signed again (docs/design/publishing.md).

    resign(manager, days=30)                        with the master key at hand
    request = make_request(manager, days=30)        or: what another machine has to sign,
    accept(manager, answer, what)                   and its answer, published

Whenever the key that signs manifests changes, there are two whitelists: the first names the former certificates too, so
that readers find the signer of the present manifest and of the next one on it; the last names only the new one. Nothing
is replaced before the newest revision is verified with what will be published. Whoever was killed repeats the call.
"""

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.errors import IntegrityError, NotFoundError, UserError
from mica.publish.keyfiles import Signer
from mica.publish.manager import ReleaseManager
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.signing import is_listed, whitelist_signature_holds
from mica.repo.signingrequest import SignedAnswer, SigningRequest, name_of_key
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import SIZE_LIMIT as WHITELIST_LIMIT
from mica.repo.whitelist import VALIDITY_DAYS, Whitelist, parse_whitelist, sign_whitelist
from mica.store.base import read_pointer

_BEFORE_ALL = datetime.datetime.min.replace(tzinfo=datetime.UTC)
"""A time at which no whitelist has expired."""
_SECOND = datetime.timedelta(seconds=1)


class _Change(NamedTuple):
    """`whitelists` in the order in which they are published."""

    whitelists: tuple[Whitelist, ...]
    signer: Signer


class _Published(NamedTuple):
    """What is to be replaced, as it was read. `whitelist` is None where there is none."""

    manifest: bytes
    whitelist: bytes | None
    parsed: Whitelist | None


def resign(
    manager: ReleaseManager,
    *,
    days: int = VALIDITY_DAYS,
    revoke_below: int = 0,
    master: rsa.RSAPrivateKey | None = None,
) -> Manifest:
    """Renew the whitelist, and sign the newest manifest again, with the next key if there is one. Revisions below a
    number are revoked; earlier revocations stay. Raises UserError if the newest one would be revoked too."""
    with manager.locked():
        key = master or manager.keys.master_key()
        before = _read(manager)
        change = _plan(manager, before, days, revoke_below)
        algorithm = manager.settings.objects.algorithm
        signed = [sign_whitelist(whitelist, key, algorithm) for whitelist in change.whitelists]
        return _publish(manager, before, change.signer, signed, key.public_key())


def make_request(manager: ReleaseManager, *, days: int = VALIDITY_DAYS, revoke_below: int = 0) -> SigningRequest:
    """The same, to be signed elsewhere. Changes nothing."""
    change = _plan(manager, _read(manager), days, revoke_below)
    keys = tuple(map(name_of_key, manager.keys.public_keys()))
    return SigningRequest(manager.fqrn, change.whitelists, keys, manager.settings.objects.algorithm)


def accept(manager: ReleaseManager, answer: SignedAnswer, what: str) -> Manifest:
    """Check and publish what was signed elsewhere; `what` names it. Raises UserError or IntegrityError, and changes
    nothing, for whitelists that are of another repository, by another key, expired, or older than the published one."""
    if answer.fqrn != manager.fqrn:
        raise UserError(f"{what} is for the repository {answer.fqrn} and not for {manager.fqrn}.")
    with manager.locked():
        master = _signing_key(manager, answer, what)
        documents = list(answer.whitelists)
        whitelists = [parse_whitelist(document, what)[0] for document in documents]
        if whitelists[-1].is_expired(_now()):
            raise UserError(
                f"The whitelist in {what} expired at {whitelists[-1].expires:%Y-%m-%d %H:%M} UTC.", hint=_ASK_AGAIN
            )
        before = _read(manager)
        if before.whitelist == documents[-1]:
            documents = documents[-1:]  # it was accepted before
        elif before.whitelist != documents[0]:
            _refuse_older(whitelists[0], before.parsed, what)
        _refuse_revoking(manager, before, whitelists[-1].oldest_revision)
        signer = _signer_on(manager, whitelists[-1], what)
        return _publish(manager, before, signer, documents, master)


def published_whitelist(manager: ReleaseManager) -> Whitelist:
    """What it says, expired or not; whether it may be believed is not checked."""
    published = _read_whitelist(manager)[1]
    if published is None:
        raise NotFoundError(f"The whitelist of {manager.fqrn} is missing.", hint=f"mica repo resign {manager.fqrn}")
    return published


def days_left(manager: ReleaseManager) -> float:
    """Until the published whitelist expires; less than 0 if it has, or if there is none."""
    published = _read_whitelist(manager)[1]
    return -1.0 if published is None else (published.expires - _now()).total_seconds() / 86400


_ASK_AGAIN = "Write a new request: mica repo resign FQRN --request FILE."


def _signing_key(manager: ReleaseManager, answer: SignedAnswer, what: str) -> rsa.RSAPublicKey:
    for key in manager.keys.public_keys():
        sealed = [parse_whitelist(document, what)[1] for document in answer.whitelists]
        if all(whitelist_signature_holds(key, one.signed_text, one.signature) for one in sealed):
            return key
    raise IntegrityError(
        f"{what} is not signed by the master key of {manager.fqrn}.",
        hint=f"Clients have {manager.keys.path('pub')}: its private half has to sign.",
    )


def _refuse_older(whitelist: Whitelist, published: Whitelist | None, what: str) -> None:
    if published is None or published.created is None:
        return
    if whitelist.created is None or whitelist.created <= published.created:
        raise UserError(
            f"{what} is older than the published whitelist: it could bring back what that one revoked.",
            hint=_ASK_AGAIN,
        )


def _signer_on(manager: ReleaseManager, whitelist: Whitelist, what: str) -> Signer:
    """The next key's or the present one's. Raises UserError if the whitelist names neither."""
    following = manager.keys.next_signer()
    if following is not None and is_listed(following.certificate, whitelist.fingerprints):
        return following  # a call that was killed may have changed only one of the present files
    signer = manager.keys.signer()
    if is_listed(signer.certificate, whitelist.fingerprints):
        return signer
    raise UserError(f"{what} does not name the certificate of {manager.fqrn}.", hint=_ASK_AGAIN)


def _plan(manager: ReleaseManager, before: _Published, days: int, revoke_below: int) -> _Change:
    oldest = max(revoke_below, before.parsed.oldest_revision if before.parsed else 0)
    _refuse_revoking(manager, before, oldest)
    signer = manager.keys.next_signer() or manager.keys.signer()
    now = _now().replace(microsecond=0)
    created = now
    if before.parsed is not None and before.parsed.created is not None:
        # Clients believe the one that was written later, whatever our clock says.
        created = max(created, before.parsed.created + _SECOND)
    expires = now + datetime.timedelta(days=days)
    last = Whitelist(manager.fqrn, created, expires, (signer.fingerprint,), oldest)
    if is_listed(manager.certificate_of(before.manifest), last.fingerprints):
        return _Change((last,), signer)
    if before.whitelist is None or before.parsed is None:
        raise IntegrityError(
            f"Another key than that of {manager.fqrn} signed its newest revision, and there is no whitelist that names"
            " it."
        )
    manager.verified(before.manifest, before.whitelist, _BEFORE_ALL)
    first = replace(last, fingerprints=(signer.fingerprint, *before.parsed.fingerprints))
    return _Change((first, replace(last, created=created + _SECOND)), signer)


def _refuse_revoking(manager: ReleaseManager, before: _Published, oldest: int) -> None:
    newest, _ = parse_manifest(before.manifest, f"The manifest of {manager.fqrn}")
    if oldest > newest.revision:
        raise UserError(
            f"Revision {newest.revision} of {manager.fqrn} is the newest: revoking all below {oldest} would revoke it"
            " too."
        )


def _publish(
    manager: ReleaseManager,
    before: _Published,
    signer: Signer,
    signed: Sequence[bytes],
    master: rsa.RSAPublicKey,
) -> Manifest:
    head = manager.verified(before.manifest, signed[0], _now())
    manager.store.replace(WHITELIST, signed[0], expected=before.whitelist)
    manifest = manager.publish_again(head, signer, replaces=before.manifest)
    following = manager.keys.next_signer()
    if following is not None and following.fingerprint == signer.fingerprint:
        manager.keys.take_next_signer()
    for former, whitelist in itertools.pairwise(signed):
        manager.store.replace(WHITELIST, whitelist, expected=former)
    manager.keys.take_next_master_key(master)
    return manifest


def _read(manager: ReleaseManager) -> _Published:
    return _Published(manager.read_manifest(), *_read_whitelist(manager))


def _read_whitelist(manager: ReleaseManager) -> tuple[bytes | None, Whitelist | None]:
    """Even an expired one. Raises IntegrityError if it cannot be read: nobody can tell then what it revoked."""
    data = read_pointer(manager.store, WHITELIST, WHITELIST_LIMIT)
    return data, None if data is None else parse_whitelist(data, f"The whitelist of {manager.fqrn}")[0]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
