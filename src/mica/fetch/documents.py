"""The documents that prove a revision: fetched together from one host, and verified (docs/design/fetching.md, "Trust").

Called by the client of a node and by replication. Any thread.
"""

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa

from mica.digest import Suffix
from mica.errors import IntegrityError
from mica.fetch.download import Fetcher
from mica.repo.blacklist import Blacklist
from mica.repo.manifest import NAME as MANIFEST
from mica.repo.manifest import READ_LIMIT as MANIFEST_LIMIT
from mica.repo.manifest import parse_manifest
from mica.repo.trust import CERTIFICATE_LIMIT, KnownRevision, RevisionTrust, TrustedRevision
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import SIZE_LIMIT as WHITELIST_LIMIT
from mica.streams import Readable


class Documents(NamedTuple):
    """As servers sent them: a manifest, the stored object of its certificate, a whitelist."""

    manifest: bytes
    certificate: bytes
    whitelist: bytes


def fetch_revision(
    fetcher: Fetcher,
    fqrn: str,
    master_keys: Sequence[rsa.RSAPublicKey],
    *,
    known: KnownRevision,
    blacklist: Blacklist,
    now: Callable[[], datetime.datetime],
) -> tuple[Documents, TrustedRevision]:
    """What the servers publish now, verified. The documents of a revision belong together: if one is wrong, the next
    host is asked for all of them. Raises what fetching and `RevisionTrust` raise."""
    again = False

    def fetch(path: str, limit: int, *, fresh: bool) -> bytes:
        return fetcher.fetch(path, lambda stream: read_whole(stream, limit), fresh=fresh)

    def consume(stream: Readable) -> tuple[Documents, TrustedRevision]:
        nonlocal again
        data = read_whole(stream, MANIFEST_LIMIT)
        manifest, _ = parse_manifest(data, f"The manifest of {fqrn}")
        certificate = manifest.certificate.object_path(Suffix.CERTIFICATE)
        again, fresh = True, again
        documents = Documents(
            manifest=data,
            certificate=fetch(certificate, CERTIFICATE_LIMIT, fresh=fresh),
            whitelist=fetch(WHITELIST, WHITELIST_LIMIT, fresh=True) if fresh else whitelist.result(),
        )
        trust = RevisionTrust(fqrn, master_keys, known=known, blacklist=blacklist)
        return verify_documents(trust, documents, now())

    # The whitelist is fetched beside the manifest: over a long way each round trip counts.
    with _one_beside("whitelist") as beside:
        whitelist = beside.submit(fetch, WHITELIST, WHITELIST_LIMIT, fresh=True)
        return fetcher.fetch(MANIFEST, consume, fresh=True)


def verify_documents(
    trust: RevisionTrust, documents: Documents, now: datetime.datetime
) -> tuple[Documents, TrustedRevision]:
    """The documents that are valid, and the revision that they describe. Raises what `RevisionTrust` raises."""
    trust.take_manifest(documents.manifest)
    trust.take_certificate(documents.certificate)
    whitelist = trust.take_whitelist(documents.whitelist, now)
    return documents._replace(whitelist=whitelist), trust.verified()


def read_whole(stream: Readable, limit: int) -> bytes:
    """All of a stream. Raises IntegrityError when it is longer than `limit`."""
    data = b""
    while block := stream.read(limit + 1 - len(data)):
        data += block
    if len(data) > limit:
        raise IntegrityError(f"An answer has more than the {limit} bytes it may have.")
    return data


@contextlib.contextmanager
def _one_beside(name: str) -> Iterator[ThreadPoolExecutor]:
    """One more thread. After Ctrl-C it is not waited for: its server may not answer."""
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=isinstance(error, Exception))
        raise
    pool.shutdown()
