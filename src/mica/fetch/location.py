"""Where a repository is, and opening it: URLs, public keys, proxies, cache directory to a ready client.

What opening takes is imported then: most commands and the callers of a node only say where a repository is.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mica.errors import NotFoundError, UserError
from mica.fetch.counters import TrafficCounter
from mica.fetch.routes import DIRECT, Routes, is_http_url, parse_proxies
from mica.files import mapped_os_errors
from mica.repo.manifest import is_fqrn

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

    from mica.fetch.client import RepositoryClient
    from mica.fetch.download import Fetcher


@dataclass(frozen=True, slots=True)
class RepositoryLocation:
    """`urls` in order of preference, http(s) or a storage directory; `keys` are files with public master keys, one of
    which must have signed the whitelist; `proxies` as in `CVMFS_HTTP_PROXY`."""

    fqrn: str
    urls: tuple[str, ...]
    keys: tuple[Path, ...]
    proxies: str = field(default=DIRECT)


@contextlib.contextmanager
def open_repository(
    location: RepositoryLocation, cache: Path, *, counter: TrafficCounter | None = None
) -> Iterator["RepositoryClient"]:
    """A client of the repository. Raises UserError for unusable settings; the network is not touched yet."""
    from mica.fetch.cache import Cache
    from mica.fetch.client import RepositoryClient

    counter = counter or TrafficCounter()
    keys = read_keys(location)
    with (
        open_fetcher(location, counter) as fetcher,
        Cache(cache) as store,
        RepositoryClient(location.fqrn, fetcher, store, keys, counter=counter) as client,
    ):
        yield client


def read_keys(location: RepositoryLocation) -> list["rsa.RSAPublicKey"]:
    """The public master keys. Raises UserError if there is none or one is no key."""
    if not is_fqrn(location.fqrn):
        raise UserError(f"{location.fqrn!r} cannot be the name of a repository.")
    if not location.keys:
        raise UserError(f"There is no public key for {location.fqrn}.", hint="Give one with --key FILE.")
    return [_read_key(path) for path in location.keys]


@contextlib.contextmanager
def open_fetcher(location: RepositoryLocation, counter: TrafficCounter) -> Iterator["Fetcher"]:
    """Raises UserError for unusable URLs or proxies."""
    from mica.fetch.download import HttpFetcher, LocalFetcher
    from mica.store.local import LocalStore

    if not location.urls:
        raise UserError(f"There is no URL for {location.fqrn}.", hint="Give one with --url URL.")
    directories = [url for url in location.urls if "://" not in url]
    if directories:
        if len(location.urls) > 1:
            raise UserError(f"{directories[0]} is a directory: it cannot be one of several servers.")
        if not os.path.isdir(directories[0]):
            raise NotFoundError(f"The storage directory {directories[0]} does not exist.")
        with LocalStore(Path(directories[0])) as store:
            yield LocalFetcher(store)
        return
    for url in location.urls:
        if not is_http_url(url):
            raise UserError(f"{url!r} is not an http or https URL.")
    hosts = [url.rstrip("/").replace("@fqrn@", location.fqrn) for url in location.urls]
    fetcher = HttpFetcher(Routes(hosts, parse_proxies(location.proxies)), counter=counter)
    with contextlib.closing(fetcher):
        yield fetcher


def _read_key(path: Path) -> "rsa.RSAPublicKey":
    from mica.repo.signing import parse_public_key

    with mapped_os_errors(f"read the public key {path}"):
        return parse_public_key(path.read_bytes(), f"The public key {path}")
