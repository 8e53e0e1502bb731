"""Where a repository is, and opening it: from URLs, public keys, proxies and a cache directory to a ready client.

The modules that opening needs are imported only then: most commands, and programs that call a node, only name a
repository.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mica.errors import NotFoundError, UserError
from mica.fetch.counters import TrafficCounter
from mica.fetch.routes import DIRECT, Routes, is_http_url, parse_proxies
from mica.files import mapped_os_errors
from mica.repo.manifest import is_fqrn
from mica.store.s3access import NO_OPTIONS, SCHEME, S3Options

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

    from mica.fetch.client import RepositoryClient
    from mica.fetch.download import Fetcher, HttpFetcher
    from mica.repo.blacklist import Blacklist


@dataclass(frozen=True, slots=True)
class RepositoryLocation:
    """`urls` in order of preference, http(s), or one storage (a directory, or s3:// with the options `s3`); `keys` are
    files with public master keys, or directories of such files (`*.pub`), which are read at each update, and one of
    which must have signed the whitelist; `proxies` as in `CVMFS_HTTP_PROXY`; `trust` is the directory of trust records
    (`trustrecord.py`), without which no revision is too old; whatever the files `blacklists` name is refused.
    `external_urls` and `external_proxies` are the same as `urls` and `proxies`, for external files over HTTP."""

    fqrn: str
    urls: tuple[str, ...]
    keys: tuple[Path, ...]
    proxies: str = field(default=DIRECT)
    trust: Path | None = None
    blacklists: tuple[Path, ...] = ()
    external_urls: tuple[str, ...] = ()
    external_proxies: str = DIRECT
    s3: S3Options = NO_OPTIONS


@contextlib.contextmanager
def open_repository(
    location: RepositoryLocation, cache: Path, *, counter: TrafficCounter | None = None
) -> Iterator["RepositoryClient"]:
    """A client of the repository. Raises UserError for unusable settings; the network is not touched yet."""
    from mica.cache.cache import Cache
    from mica.fetch.client import RepositoryClient
    from mica.fetch.trustrecord import TrustRecord

    counter = counter or TrafficCounter()
    fqrn = location.fqrn
    read_keys(location)  # what is wrong with them is said now, and not at the first update
    former = cache / "repositories" / fqrn
    record = None if location.trust is None else TrustRecord(location.trust, fqrn, former=former)
    with (
        open_fetcher(location, counter) as fetcher,
        _open_external(location, counter) as external,
        Cache(cache) as store,
        RepositoryClient(
            fqrn,
            fetcher,
            store,
            lambda: _read_present_keys(location),
            external=external,
            record=record,
            blacklist=lambda: read_blacklists(location),
            counter=counter,
        ) as client,
    ):
        yield client


def published_name(location: RepositoryLocation) -> str:
    """The name that the servers publish. Nothing is verified here; opening the repository verifies it."""
    from mica.fetch.documents import read_whole
    from mica.repo.manifest import NAME, SIZE_LIMIT, parse_manifest

    with open_fetcher(location, TrafficCounter()) as fetcher:
        return fetcher.fetch(
            NAME, lambda stream: parse_manifest(read_whole(stream, SIZE_LIMIT), "The manifest")[0].fqrn, fresh=True
        )


def read_blacklists(location: RepositoryLocation) -> "Blacklist":
    """Everything that its blacklist files refuse. Raises UserError for one that cannot be read."""
    from mica.repo.blacklist import joined, parse_blacklist

    found = []
    for path in location.blacklists:
        with mapped_os_errors(f"read the blacklist {path}"):
            found.append(parse_blacklist(path.read_bytes(), f"the blacklist {path}"))
    return joined(found)


def read_keys(location: RepositoryLocation) -> list["rsa.RSAPublicKey"]:
    """The public master keys. Raises UserError if there is none, or if a file is not a key."""
    if not is_fqrn(location.fqrn):
        raise UserError(f"{location.fqrn!r} cannot be the name of a repository.")
    if not location.keys:
        raise UserError(f"There is no public key for {location.fqrn}.", hint="Give one with --key FILE.")
    return [_read_key(path) for place in location.keys for path in _files_of(place)]


def _read_present_keys(location: RepositoryLocation) -> list["rsa.RSAPublicKey"]:
    """Without the files that are gone, unless all are: a master key that is no longer in use is taken away some time
    after the next one came, and a mount goes on meanwhile."""
    present = tuple(path for path in location.keys if path.exists())
    return read_keys(replace(location, keys=present or location.keys))


def _files_of(place: Path) -> list[Path]:
    """A file, or the files `*.pub` of a directory. Raises UserError if it has none."""
    if not place.is_dir():
        return [place]
    files = sorted(place.glob("*.pub"))
    if not files:
        raise UserError(f"The directory {place} has no public key (*.pub).")
    return files


@contextlib.contextmanager
def open_fetcher(location: RepositoryLocation, counter: TrafficCounter) -> Iterator["Fetcher"]:
    """Raises UserError for unusable URLs or proxies."""
    from mica.fetch.download import LocalFetcher
    from mica.store.opening import open_store

    if not location.urls:
        raise UserError(f"There is no URL for {location.fqrn}.", hint="Give one with --url URL.")
    directories = [url for url in location.urls if "://" not in url]
    storages = [url for url in location.urls if url.startswith(SCHEME)] + directories
    if storages and len(location.urls) > 1:
        raise UserError(f"{storages[0]} is a storage: it cannot be one of several servers.")
    if directories and not os.path.isdir(directories[0]):
        first = directories[0].partition("/")[0]
        if ":" in first or "." in first.strip("."):
            raise UserError(
                f"{directories[0]!r} is neither a URL nor a directory.", hint="URLs begin with http:// or https://."
            )
        raise NotFoundError(f"The storage directory {directories[0]} does not exist.")
    if storages:
        with open_store(storages[0], location.s3) as store:
            yield LocalFetcher(store)
        return
    with _open_http(location.fqrn, location.urls, location.proxies, counter) as fetcher:
        yield fetcher


@contextlib.contextmanager
def _open_external(location: RepositoryLocation, counter: TrafficCounter) -> Iterator["HttpFetcher | None"]:
    """None if no server of external files is known."""
    if not location.external_urls:
        yield None
        return
    with _open_http(location.fqrn, location.external_urls, location.external_proxies, counter) as fetcher:
        yield fetcher


@contextlib.contextmanager
def _open_http(fqrn: str, urls: tuple[str, ...], proxies: str, counter: TrafficCounter) -> Iterator["HttpFetcher"]:
    from mica.fetch.download import HttpFetcher

    for url in urls:
        if not is_http_url(url):
            raise UserError(f"{url!r} is not an http or https URL.")
    hosts = [url.rstrip("/").replace("@fqrn@", fqrn) for url in urls]
    with contextlib.closing(HttpFetcher(Routes(hosts, parse_proxies(proxies)), counter=counter)) as fetcher:
        yield fetcher


def _read_key(path: Path) -> "rsa.RSAPublicKey":
    from mica.repo.signing import parse_public_key

    with mapped_os_errors(f"read the public key {path}"):
        return parse_public_key(path.read_bytes(), f"The public key {path}")
