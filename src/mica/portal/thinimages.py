"""Thin images by name: made when they are first asked for, checked again after a while, served when upstream is down.

Who asks for an image that is being made joins that conversion and waits for it, for as long as clients do; the
conversion goes on when they have gone. Any thread. Races: the task of a name is found or begun under the lock, and
taken out of the table when it is done, so whoever comes later begins a new one, which finds the image on the shelf.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from mica.errors import MicaError, NotFoundError, TemporaryError
from mica.logs import logger
from mica.oci.reference import Reference
from mica.oci.registry import RegistryClient
from mica.portal.policy import Policy
from mica.portal.shelf import Document, Shelf, ShelvedTag
from mica.thin.converter import Converter, Platforms

_LOG = logger(__name__)


class StillMakingError(TemporaryError):
    """The image is being made, and takes longer than a client is kept waiting."""


@dataclass(frozen=True, slots=True)
class Timing:
    """`recheck_s`: how long a tag is taken to be what it was. `patience_s`: how long a client is kept waiting."""

    recheck_s: float = 60.0
    patience_s: float = 900.0


class ThinImages:
    """`conversions` is how many are made at a time; the others wait."""

    def __init__(
        self,
        policy: Policy,
        shelf: Shelf,
        client: RegistryClient,
        converter: Converter,
        *,
        platforms: Platforms,
        timing: Timing,
        conversions: int = 2,
    ) -> None:
        self._policy = policy
        self._shelf = shelf
        self._client = client
        self._converter = converter
        self._platforms = platforms
        self._timing = timing
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(conversions)
        self._running: dict[tuple[str, str], Future[ShelvedTag]] = {}
        self._checked: dict[tuple[str, str], float] = {}

    def manifest(self, name: str, version: str) -> Document:
        """By tag or digest. Raises NotFoundError, ForbiddenError, StillMakingError, and what converting raises."""
        upstream = self._policy.upstream_of(name)
        if ":" in version:
            found = self._shelf.manifest(name, version)
            if found is None:
                raise NotFoundError(f"There is no thin image {name}@{version[:100]} here; ask for a tag.")
            return found
        reference = Reference.parse(f"{upstream.name}:{version}")
        shelved = self._wait_for(name, version, lambda: self._look(name, reference))
        document = self._shelf.manifest(name, shelved.manifest)
        assert document is not None, "a tag is on the shelf after its manifest"
        return document

    def blob(self, name: str, digest: str) -> bytes:
        self._policy.upstream_of(name)
        data = self._shelf.blob(name, digest)
        if data is None:
            raise NotFoundError(f"{name} has no blob {digest[:100]}.")
        return data

    def tags(self, name: str) -> list[str]:
        """What could be asked for; what was made so far, while upstream is down."""
        upstream = self._policy.upstream_of(name)
        try:
            return sorted(set(self._client.tags(upstream)))
        except TemporaryError:
            return self._shelf.tags(name)

    def _wait_for(self, name: str, tag: str, look: Callable[[], ShelvedTag]) -> ShelvedTag:
        key = (name, tag)
        with self._lock:
            is_fresh = time.monotonic() < self._checked.get(key, 0.0)
            future = self._running.get(key)
        if is_fresh and future is None and (shelved := self._shelf.tag(name, tag)) is not None:
            return shelved
        with self._lock:
            future = self._running.get(key)
            if future is None:
                future = self._running[key] = Future()
                threading.Thread(target=self._run, args=(key, future, look), daemon=True, name="portal").start()
        try:
            return future.result(self._timing.patience_s)
        except FutureTimeoutError as error:
            raise StillMakingError(f"{name}:{tag} is still being made.", hint="Ask again in a minute.") from error

    def _run(self, key: tuple[str, str], future: "Future[ShelvedTag]", look: Callable[[], ShelvedTag]) -> None:
        try:
            shelved = look()
        except BaseException as error:
            outcome: ShelvedTag | BaseException = error
        else:
            outcome = shelved
        with self._lock:
            del self._running[key]
            if isinstance(outcome, ShelvedTag):
                self._checked[key] = time.monotonic() + self._timing.recheck_s
        if isinstance(outcome, ShelvedTag):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

    def _look(self, name: str, reference: Reference) -> ShelvedTag:
        """What a tag stands for now; what it stood for, while that cannot be found out."""
        assert reference.tag is not None
        known = self._shelf.tag(name, reference.tag)
        try:
            digest = self._client.digest_of(reference)
            return known if known is not None and known.upstream == digest else self._make(name, reference)
        except TemporaryError as error:
            if known is None:
                raise
            _LOG.warning("%s is served as it was: %s", reference, error)
            return known

    def _make(self, name: str, reference: Reference) -> ShelvedTag:
        assert reference.tag is not None
        started_s = time.monotonic()
        try:
            with (
                self._slots,
                self._converter.opened(f"docker://{reference}", self._platforms) as opened,
            ):
                self._converter.convert(opened)
                written = self._converter.write(opened, self._shelf.writer(name), tag=reference.tag)
        except MicaError as error:
            _LOG.warning("%s could not be converted: %s", reference, error)
            raise
        shelved = ShelvedTag(opened.digest, written.digest, written.media_type)
        self._shelf.put_tag(name, reference.tag, shelved)
        _LOG.info("%s converted in %.1f s", reference, time.monotonic() - started_s)
        return shelved
