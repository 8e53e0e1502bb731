"""Where repositories are, from all that can tell: command line, configuration, what is published here."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mica.config import NodeConfig, PortalConfig, load_config, parse_limit, parse_method
from mica.errors import NotFoundError, UsageError, UserError
from mica.fetch.counters import TrafficCounter
from mica.fetch.location import RepositoryLocation
from mica.node.stack import Method

if TYPE_CHECKING:
    from mica.node.kernelfacts import KernelFacts


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
    ) -> None:
        """Raises UserError for a wrong configuration, UsageError for a wrong quota."""
        self._state = state
        self._config: NodeConfig = load_config(config)
        self._urls = tuple(urls or ())
        self._keys = tuple(keys or ())
        self._proxies = proxies
        self._cache = cache
        self._quota_bytes = _parse_quota(quota) if quota is not None else self._config.quota_bytes
        self.counter = TrafficCounter()

    @functools.cached_property
    def cache(self) -> Path:
        """The directory. With its first use here the limits that were given are in force for all who use it."""
        if (self._quota_bytes, self._config.keep_free_bytes) != (None, None):
            from mica.fetch.cache import set_limits

            set_limits(self.cache_path, self._quota_bytes, self._config.keep_free_bytes)
        return self.cache_path

    @property
    def cache_path(self) -> Path:
        """The same, only looked at."""
        return self._cache or self._config.cache or self._state / "cache"

    @property
    def config(self) -> NodeConfig:
        return self._config

    @property
    def drivers(self) -> Path:
        """Where drivers of engines keep what they have to know after a restart."""
        return self._state / "drivers"

    @property
    def portal(self) -> PortalConfig:
        """Raises UserError where nothing is configured."""
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
        """Forks a child where nothing is known yet."""
        from mica.node.kernelfacts import kernel_facts

        return kernel_facts(self.cache, self._state / "kernel.json")

    @property
    def known(self) -> list[str]:
        """Repositories of the configuration and those published here."""
        local = (self._state / "repositories").glob("*/repository.toml")
        return sorted({*self._config.repositories, *(path.parent.name for path in local)})

    def locate(self, fqrn: str) -> RepositoryLocation:
        """Raises NotFoundError if nothing tells where the repository is."""
        found = self._config.repositories.get(fqrn)
        if found is None and not (self._urls and self._keys):
            found = self._local(fqrn)
        if self._urls:
            keys = self._keys or (found.keys if found else ())
            proxies = self._proxies or (found.proxies if found else "DIRECT")
            return RepositoryLocation(fqrn, self._urls, keys, proxies)
        if found is None:
            raise NotFoundError(
                f"Nothing tells where repository {fqrn} is.",
                hint="Give --url and --key, or add it to the configuration.",
            )
        return RepositoryLocation(fqrn, found.urls, self._keys or found.keys, self._proxies or found.proxies)

    def _local(self, fqrn: str) -> RepositoryLocation | None:
        from mica.publish.settings import read_settings

        try:
            settings = read_settings(self._state, fqrn)
        except NotFoundError:
            return None
        return RepositoryLocation(fqrn, (os.fspath(settings.storage),), (settings.key_path("pub"),))


def _parse_quota(text: str) -> int:
    try:
        return parse_limit(text)
    except ValueError as error:
        raise UsageError(f"--quota: {error}.") from error
