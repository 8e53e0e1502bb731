"""Where repositories are, by the command line, the configuration, and what is published here."""

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mica.config import BLACKLISTS, NodeConfig, PortalConfig, load_config, parse_method, parse_quota
from mica.errors import NotFoundError, TemporaryError, UsageError, UserError
from mica.fetch.counters import TrafficCounter
from mica.fetch.location import RepositoryLocation
from mica.layers.stack import Method

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mica.dataplane.kernelfacts import KernelFacts
    from mica.fetch.client import RepositoryClient


class Places:
    """Finds repositories: what the command line gives, then the configuration, then what is published here."""

    def __init__(
        self,
        state: Path,
        *,
        config: Path | None = None,
        urls: list[str] | None = None,
        keys: list[Path] | None = None,
        proxies: str | None = None,
        cache: Path | None = None,
        quota: str | None = None,
        external_urls: list[str] | None = None,
        external_proxies: str | None = None,
        hint: str = "Give --url and --key, or add it to the configuration.",
    ) -> None:
        """`hint` is for a repository whose place is not known. Raises UserError for a wrong configuration, UsageError
        for a wrong quota."""
        self._hint = hint
        self._state = state
        self._config: NodeConfig = load_config(config)
        self.config_path = config
        self._urls = tuple(urls or ())
        self._keys = tuple(keys or ())
        self._proxies = proxies
        # The stock client's names: it has them in its configuration, and its users have them in scripts.
        stock_urls = [url.strip() for url in os.environ.get("CVMFS_EXTERNAL_URL", "").split(";") if url.strip()]
        self._external_urls = tuple(external_urls or stock_urls)
        self._external_proxies = external_proxies or os.environ.get("CVMFS_EXTERNAL_HTTP_PROXY")
        self._cache = cache
        self._quota_bytes = parse_quota_option(quota) if quota is not None else self._config.quota_bytes
        self.counter = TrafficCounter()

    @functools.cached_property
    def cache(self) -> Path:
        """The directory. The first use here sets the limits that were given, for all commands that use the cache."""
        if (self._quota_bytes, self._config.keep_free_bytes) != (None, None):
            from mica.cache.cache import set_limits

            set_limits(self.cache_path, self._quota_bytes, self._config.keep_free_bytes)
        return self.cache_path

    @property
    def cache_path(self) -> Path:
        """The same directory, without setting limits."""
        return self._cache or self._config.cache or self._state / "cache"

    @property
    def config(self) -> NodeConfig:
        return self._config

    @property
    def drivers(self) -> Path:
        """Where drivers of engines keep what they need to know after a restart."""
        return self._state / "drivers"

    @property
    def portal(self) -> PortalConfig:
        """Raises UserError if no portal is configured."""
        if self._config.portal is None:
            raise UserError(
                "The configuration has no [portal].", hint='It needs at least: repository = "…" and allow = ["…"].'
            )
        return self._config.portal

    def method(self, wanted: str | None) -> Method:
        """How layers are mounted here. Raises UserError for a method that this host cannot do. Forks a child."""
        try:
            chosen = self._config.method if wanted is None else parse_method(wanted)
        except ValueError as error:
            raise UsageError(f"{error}.") from error
        if chosen is not None and not chosen.uses_images:
            return chosen
        return self.kernel_facts().choose(chosen)

    def kernel_facts(self) -> "KernelFacts":
        """Forks a child if the facts are not known yet."""
        from mica.dataplane.keptfacts import kernel_facts

        return kernel_facts(self.cache, self._state / "kernel.json")

    @property
    def known(self) -> list[str]:
        """Repositories of the configuration and those published here."""
        from mica.publish.settings import published_here

        return sorted({*self._config.repositories, *published_here(self._state)})

    @property
    def searched(self) -> list[str]:
        """Repositories in which an image is looked for by its name: with a URL the repository at the URL, else all that
        are known. If no server of the URL answers, these are all that are known too, because one of them may be meant.
        Raises TemporaryError if there is none."""
        if not self._urls or any("@fqrn@" in url for url in self._urls):
            return self.known
        from mica.fetch.location import published_name

        try:
            return [published_name(RepositoryLocation("", self._urls, (), self._proxies or "DIRECT"))]
        except TemporaryError:
            if known := self.known:
                return known
            raise

    @property
    def trust(self) -> Path:
        """Where trust records are kept: in the state, because a cache may be removed or moved."""
        return self._state / "trust"

    def open(self, fqrn: str) -> "AbstractContextManager[RepositoryClient]":
        """A client of a repository, whose traffic is counted. Raises NotFoundError as `locate` does."""
        from mica.fetch.location import open_repository

        return open_repository(self.locate(fqrn), self.cache, counter=self.counter)

    def locate(self, fqrn: str) -> RepositoryLocation:
        """Raises NotFoundError for a repository that is neither configured nor published here."""
        blacklists = self._config.blacklists
        if blacklists is None:
            blacklists = tuple(path for path in BLACKLISTS if path.exists())
        configured = self._config.repositories.get(fqrn)
        urls, proxies = self._external_urls, self._external_proxies
        if configured is not None:
            urls, proxies = urls or configured.external_urls, proxies or configured.external_proxies
        return replace(
            self._place_of(fqrn),
            trust=self.trust.absolute(),
            blacklists=blacklists,
            external_urls=urls,
            external_proxies=proxies or "DIRECT",
        )

    def _place_of(self, fqrn: str) -> RepositoryLocation:
        found = self._config.repositories.get(fqrn)
        if found is None and not (self._urls and self._keys):
            found = self._local(fqrn)
        if self._urls:
            keys = self._keys or (found.keys if found else ())
            proxies = self._proxies or (found.proxies if found else "DIRECT")
            return RepositoryLocation(fqrn, self._urls, keys, proxies)
        if found is None:
            raise NotFoundError(
                f"Repository {fqrn} is neither configured nor published on this host.",
                hint=self._hint,
            )
        return replace(found, keys=self._keys or found.keys, proxies=self._proxies or found.proxies)

    def _local(self, fqrn: str) -> RepositoryLocation | None:
        from mica.publish.settings import read_settings

        try:
            settings = read_settings(self._state, fqrn)
        except NotFoundError:
            return None
        following = settings.key_path("next.pub")
        keys = (settings.key_path("pub"), *([following] if following.exists() else []))
        return RepositoryLocation(fqrn, (settings.storage,), keys, s3=settings.s3)


def parse_quota_option(text: str) -> int:
    """Bytes, 0 for none. Raises UsageError."""
    try:
        return parse_quota(text)
    except ValueError as error:
        raise UsageError(f"--quota: {error}.") from error
