"""Which revisions are believed: signed, not older than what is known, not refused."""

import datetime
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, member

from mica.digest import Algorithm, Digest, Suffix
from mica.errors import IntegrityError
from mica.repo.blacklist import Blacklist
from mica.repo.manifest import Manifest, parse_manifest, sign_manifest
from mica.repo.objects import PackedObject, pack_stock
from mica.repo.sealed import format_sealed, parse_sealed
from mica.repo.signing import (
    fingerprint,
    new_certificate,
    new_key,
    parse_certificate,
    parse_private_key,
    parse_public_key,
    public_pem,
)
from mica.repo.trust import (
    CERTIFICATE_LIMIT,
    NOTHING_KNOWN,
    KnownRevision,
    RevisionTrust,
    StepError,
    TrustedRevision,
)
from mica.repo.whitelist import Whitelist, parse_whitelist, sign_whitelist

NOW = datetime.datetime.now(datetime.UTC)
NOTHING_REFUSED = Blacklist()
HOUR = datetime.timedelta(hours=1)


class Published:
    """What a server shows of a repository at revision 2."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.manifest = (repository.storage / ".cvmfspublished").read_bytes()
        self.whitelist = (repository.storage / ".cvmfswhitelist").read_bytes()
        self.head: Manifest = parse_manifest(self.manifest, "it")[0]
        self.certificate = (repository.storage / self.head.certificate.object_path(Suffix.CERTIFICATE)).read_bytes()

    def signed(self, **changed: object) -> bytes:
        master = parse_private_key((self.repository.keys / f"{FQRN}.masterkey").read_bytes(), "key")
        return sign_whitelist(replace(self.parsed, **changed), master)  # type: ignore[arg-type]

    def signed_manifest(self, **changed: object) -> bytes:
        key = parse_private_key((self.repository.keys / f"{FQRN}.key").read_bytes(), "key")
        return sign_manifest(replace(self.head, **changed), key)  # type: ignore[arg-type]

    @property
    def parsed(self) -> Whitelist:
        return parse_whitelist(self.whitelist, "it")[0]

    def verified(
        self, known: KnownRevision = NOTHING_KNOWN, blacklist: Blacklist = NOTHING_REFUSED, whitelist: bytes = b""
    ) -> TrustedRevision:
        trust = RevisionTrust(FQRN, [self.repository.master_key], known=known, blacklist=blacklist)
        trust.take_manifest(self.manifest)
        trust.take_certificate(self.certificate)
        trust.take_whitelist(whitelist or self.whitelist, NOW)
        return trust.verified()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    repository = make_repository(Path(tmp_path_factory.mktemp("repository")))
    ingest(repository, member(b"file", b"content") + END)
    return Published(repository)


def test_what_is_as_new_as_what_is_known_is_believed(published: Published) -> None:
    known = KnownRevision(published.head.published_at, 2, published.whitelist)
    assert published.verified(known).manifest == published.head
    assert published.verified().manifest == published.head


def test_what_is_older_is_not(published: Published) -> None:
    with pytest.raises(IntegrityError, match="before the one already known") as refusal:
        published.verified(KnownRevision(published.head.published_at + 1))
    assert refusal.value.hint == "A proxy or mirror may serve old content."
    with pytest.raises(IntegrityError, match="of revision 2, and revision 3 is already known") as refusal:
        published.verified(KnownRevision(0, 3, where="/x"))
    assert "made again, remove /x" in refusal.value.hint


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_certificates_on_the_blacklist(published: Published, algorithm: Algorithm) -> None:
    certificate = parse_certificate((published.repository.keys / f"{FQRN}.crt").read_bytes(), "it")
    refused = Blacklist(frozenset({fingerprint(certificate, algorithm)}))
    with pytest.raises(IntegrityError, match="is on the blacklist"):
        published.verified(blacklist=refused)


def test_revisions_on_the_blacklist(published: Published) -> None:
    assert published.verified(blacklist=Blacklist(revisions={FQRN: 2, "other.org": 9})).manifest.revision == 2
    with pytest.raises(IntegrityError, match="the blacklist refuses all below 3"):
        published.verified(blacklist=Blacklist(revisions={FQRN: 3}))


def test_revisions_that_the_whitelist_revokes(published: Published) -> None:
    assert published.verified(whitelist=published.signed(oldest_revision=2)).manifest.revision == 2
    with pytest.raises(IntegrityError, match=r"Revision 2 of .* is revoked by the whitelist, as all below 3"):
        published.verified(whitelist=published.signed(oldest_revision=3))


def test_the_newest_whitelist_known_counts(published: Published) -> None:
    created = published.parsed.created
    assert created is not None
    revoking = published.signed(created=created + HOUR, oldest_revision=3)
    with pytest.raises(IntegrityError, match="is revoked"):
        published.verified(KnownRevision(whitelist=revoking))
    expired = published.signed(created=created + HOUR, expires=NOW - HOUR)
    with pytest.raises(IntegrityError, match=r"The newest whitelist known of .* expired"):
        published.verified(KnownRevision(whitelist=expired))
    before = published.signed(created=created - HOUR, oldest_revision=3)
    assert published.verified(KnownRevision(whitelist=before)).manifest.revision == 2


def test_a_known_whitelist_of_other_keys_counts_no_more(published: Published) -> None:
    """After a change of master keys nobody can renew what the old ones signed."""
    created = published.parsed.created
    assert created is not None
    foreign = sign_whitelist(replace(published.parsed, created=created + HOUR, fingerprints=()), new_key())
    assert published.verified(KnownRevision(whitelist=foreign)).manifest.revision == 2


@functools.cache
def stranger() -> rsa.RSAPrivateKey:
    """A key that nobody trusts."""
    return new_key()


STEPS: dict[str, Callable[[RevisionTrust, Published], object]] = {
    "manifest": lambda trust, published: trust.take_manifest(published.manifest),
    "certificate": lambda trust, published: trust.take_certificate(published.certificate),
    "whitelist": lambda trust, published: trust.take_whitelist(published.whitelist, NOW),
    "verified": lambda trust, published: trust.verified(),
}
ORDER = list(STEPS)


@pytest.mark.parametrize(
    ("taken", "step", "sentence"),
    [
        (0, "certificate", "The manifest is taken first."),
        (0, "whitelist", "The certificate is taken first."),
        (0, "verified", "The manifest is taken first."),
        (1, "manifest", "A trust takes only one manifest."),
        (1, "whitelist", "The certificate is taken first."),
        (1, "verified", "The certificate is taken first."),
        (2, "manifest", "A trust takes only one manifest."),
        (2, "verified", "The whitelist is taken first."),
        (3, "manifest", "A trust takes only one manifest."),
        (4, "manifest", "A trust takes only one manifest."),
    ],
)
def test_no_step_can_be_left_out_and_no_manifest_exchanged(
    published: Published, taken: int, step: str, sentence: str
) -> None:
    """Also under `python -O`, which leaves out every `assert`. The refused step changes nothing: those that are left
    still give the revision."""
    trust = RevisionTrust(FQRN, [published.repository.master_key])
    for name in ORDER[:taken]:
        STEPS[name](trust, published)
    with pytest.raises(StepError) as refusal:
        STEPS[step](trust, published)
    assert str(refusal.value) == sentence
    for name in ORDER[taken:]:
        STEPS[name](trust, published)
    assert trust.verified().manifest == published.head


@pytest.mark.parametrize(("taken", "step"), [(2, "certificate"), (3, "whitelist"), (4, "certificate"), (4, "verified")])
def test_a_proof_may_be_given_again(published: Published, taken: int, step: str) -> None:
    """A certificate or whitelist that another server gives for the same manifest."""
    trust = RevisionTrust(FQRN, [published.repository.master_key])
    for name in [*ORDER[:taken], step, *ORDER[taken:]]:
        STEPS[name](trust, published)
    assert trust.verified().manifest == published.head


def test_a_verified_revision_tells_until_when_its_whitelist_holds(published: Published) -> None:
    assert published.verified() == TrustedRevision(published.head, published.parsed.expires)


def trusting(published: Published, *steps: str, fqrn: str = FQRN) -> RevisionTrust:
    """After some legal steps, with a server's name for messages."""
    trust = RevisionTrust(fqrn, [published.repository.master_key], where="mirror.example")
    for name in steps:
        STEPS[name](trust, published)
    return trust


def test_the_manifest_of_another_repository_is_refused(published: Published) -> None:
    trust = trusting(published, fqrn="other.example.org")
    with pytest.raises(IntegrityError) as refusal:
        trust.take_manifest(published.manifest)
    assert str(refusal.value) == (
        f"The manifest of other.example.org from mirror.example belongs to another repository, {FQRN}."
    )


def test_after_a_refused_manifest_another_one_can_be_taken(published: Published) -> None:
    """A trust that a damaged answer made useless would turn one bad server into a failure."""
    trust = trusting(published)
    with pytest.raises(IntegrityError, match=f"The manifest of {FQRN} from mirror.example"):
        trust.take_manifest(published.manifest[:40])
    with pytest.raises(StepError, match="The manifest is taken first"):
        trust.take_certificate(published.certificate)
    for name in ORDER:
        STEPS[name](trust, published)
    assert trust.verified().manifest == published.head


def test_a_manifest_with_the_signature_of_another_key_or_text_is_refused(published: Published) -> None:
    """The digest in it fits its text: everybody can compute that."""
    foreign = sign_manifest(replace(published.head, revision=9), stranger())
    changed, former = parse_sealed(foreign, "it"), parse_sealed(published.manifest, "it")
    for forged in (foreign, format_sealed(changed.text, changed.digest, former.signature)):
        trust = trusting(published)
        assert trust.take_manifest(forged).revision == 9
        with pytest.raises(IntegrityError) as refusal:
            trust.take_certificate(published.certificate)
        assert str(refusal.value) == f"The manifest of {FQRN} from mirror.example has a wrong signature."
        with pytest.raises(StepError, match="The certificate is taken first"):
            trust.take_whitelist(published.whitelist, NOW)


def refused_certificate(published: Published, named: Digest, stored: bytes) -> str:
    """Why a certificate is refused that a rightly signed manifest names."""
    trust = trusting(published)
    trust.take_manifest(published.signed_manifest(certificate=named))
    with pytest.raises(IntegrityError) as refusal:
        trust.take_certificate(stored)
    return str(refusal.value)


def packed(plain: bytes) -> PackedObject:
    return pack_stock(plain, Algorithm.SHA1)


def test_a_certificate_that_the_manifest_does_not_name_is_refused(published: Published) -> None:
    named = published.head.certificate
    sentence = refused_certificate(published, named, packed(b"another").stored)
    assert sentence.startswith(
        f"The certificate {named} of {FQRN} from mirror.example is not what the manifest names: "
        f"Object {named} has other content"
    )


def test_a_certificate_of_any_size_is_not_unpacked(published: Published) -> None:
    bomb = packed(bytes(CERTIFICATE_LIMIT + 1))
    sentence = refused_certificate(published, *bomb)
    assert f"unpacks to more than the {CERTIFICATE_LIMIT} bytes" in sentence


def test_what_is_no_certificate_is_refused(published: Published) -> None:
    key = packed(public_pem(stranger()))
    assert refused_certificate(published, *key) == (
        f"The certificate {key.digest} of {FQRN} from mirror.example is not a PEM certificate."
    )


def test_a_certificate_with_another_key_did_not_sign_the_manifest(published: Published) -> None:
    foreign = packed(new_certificate(stranger(), FQRN, NOW))
    assert refused_certificate(published, *foreign) == (
        f"The manifest of {FQRN} from mirror.example has a wrong signature."
    )


def test_a_certificate_of_the_same_key_must_be_on_the_whitelist_itself(published: Published) -> None:
    """The whitelist names certificates and not keys, as the stock client has it."""
    key = parse_private_key((published.repository.keys / f"{FQRN}.key").read_bytes(), "key")
    renewed = packed(new_certificate(key, FQRN, NOW))
    trust = trusting(published)
    trust.take_manifest(published.signed_manifest(certificate=renewed.digest))
    trust.take_certificate(renewed.stored)
    trust.take_whitelist(published.whitelist, NOW)
    with pytest.raises(IntegrityError) as refusal:
        trust.verified()
    assert str(refusal.value) == (
        f"The certificate that signed the manifest of {FQRN} from mirror.example is not on its whitelist."
    )


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_certificates_on_the_whitelist(published: Published, algorithm: Algorithm) -> None:
    """One fingerprint of many is enough, in every algorithm that a whitelist can name."""
    certificate = parse_certificate((published.repository.keys / f"{FQRN}.crt").read_bytes(), "it")
    foreign = parse_certificate(new_certificate(stranger(), FQRN, NOW), "it")
    listed = (fingerprint(foreign), fingerprint(certificate, algorithm))
    assert published.verified(whitelist=published.signed(fingerprints=listed)).manifest == published.head
    with pytest.raises(IntegrityError, match="is not on its whitelist"):
        published.verified(whitelist=published.signed(fingerprints=listed[:1]))
    with pytest.raises(IntegrityError, match="is not on its whitelist"):
        published.verified(whitelist=published.signed(fingerprints=()))


def test_any_of_several_master_keys_may_sign_the_whitelist(published: Published) -> None:
    right, other = published.repository.master_key, parse_public_key(public_pem(stranger()), "key")
    for keys in ([right, other], [other, right]):
        trust = RevisionTrust(FQRN, keys)
        for name in ORDER:
            STEPS[name](trust, published)
    for keys, count in (([other], 1), ([other, other], 2), ([], 0)):
        trust = RevisionTrust(FQRN, keys, where="mirror.example")
        trust.take_manifest(published.manifest)
        trust.take_certificate(published.certificate)
        with pytest.raises(IntegrityError) as refusal:
            trust.take_whitelist(published.whitelist, NOW)
        assert str(refusal.value) == (
            f"The whitelist of {FQRN} from mirror.example is not signed by any of the {count} keys given for it."
        )
        assert refusal.value.hint == "Check that the public key (.pub) is the one of this repository."
        with pytest.raises(StepError, match="The whitelist is taken first"):
            trust.verified()


def test_the_whitelist_of_another_repository_is_refused(published: Published) -> None:
    """Owners sign several repositories with one master key."""
    trust = trusting(published, "manifest", "certificate")
    with pytest.raises(IntegrityError) as refusal:
        trust.take_whitelist(published.signed(fqrn="other.example.org"), NOW)
    assert str(refusal.value) == (
        f"The whitelist of {FQRN} from mirror.example belongs to another repository, other.example.org."
    )
    other = published.signed(fqrn="other.example.org", created=NOW + HOUR, fingerprints=())
    assert published.verified(KnownRevision(whitelist=other)).manifest == published.head


def test_a_whitelist_holds_until_the_hour_of_its_expiry(published: Published) -> None:
    whitelist = published.signed(expires=datetime.datetime(2030, 5, 6, 7, 30, tzinfo=datetime.UTC))
    trust = trusting(published, "manifest", "certificate")
    trust.take_whitelist(whitelist, datetime.datetime(2030, 5, 6, 6, 59, 59, tzinfo=datetime.UTC))
    with pytest.raises(IntegrityError) as refusal:
        trust.take_whitelist(whitelist, datetime.datetime(2030, 5, 6, 7, 0, 0, tzinfo=datetime.UTC))
    assert str(refusal.value) == f"The whitelist of {FQRN} from mirror.example expired at 2030-05-06 07:30 UTC."
    assert "mica repo resign" in refusal.value.hint


def test_the_whitelist_that_counts_is_handed_back(published: Published) -> None:
    """The caller remembers it: the next server may again have an old one."""
    created = published.parsed.created
    assert created is not None
    newer, older = (published.signed(created=created + step) for step in (HOUR, -HOUR))
    for known, counts in ((b"", published.whitelist), (older, published.whitelist), (newer, newer)):
        trust = RevisionTrust(FQRN, [published.repository.master_key], known=KnownRevision(whitelist=known))
        trust.take_manifest(published.manifest)
        trust.take_certificate(published.certificate)
        assert trust.take_whitelist(published.whitelist, NOW) == counts


@pytest.mark.parametrize("damage", [b"", b"damaged", b"damaged\n--\n"])
def test_a_damaged_record_of_the_known_whitelist_refuses_nothing(published: Published, damage: bytes) -> None:
    assert published.verified(KnownRevision(whitelist=damage)).manifest == published.head


def test_an_old_whitelist_does_not_bring_a_revoked_certificate_back(published: Published) -> None:
    created = published.parsed.created
    assert created is not None
    known = published.signed(created=created + HOUR, fingerprints=())
    with pytest.raises(IntegrityError, match="is not on its whitelist"):
        published.verified(KnownRevision(whitelist=known))
