"""Thin images by name: made when they are first asked for, checked again after a while, served when upstream is down.

A request for an image that is being made joins that conversion and waits for it, up to a limit; the conversion goes on
when its clients have gone. Any thread. Races: the task of a name is found or begun under the lock, and taken out of the
table when it is done. So a later request begins a new task, which finds the image on the shelf.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from mica.convert.converter import Converter, Platforms
from mica.errors import MicaError, NotFoundError, TemporaryError
from mica.logs import logger
from mica.oci.reference import Reference
from mica.oci.registry import RegistryClient
from mica.portal.policy import Policy
from mica.portal.shelf import Document, Shelf, ShelvedTag

_LOG = logger(__name__)


class StillMakingError(TemporaryError):
    """The image is still being made when the client's time to wait is over."""


@dataclass(frozen=True, slots=True)
class Timing:
    """`recheck_s`: how long a tag is taken to be unchanged. `patience_s`: how long a client waits at most."""

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
        """By tag or digest. Raises NotFoundError, ForbiddenError, StillMakingError, the errors of converting, and
        TemporaryError if the image is removed from the shelf meanwhile."""
        upstream = self._policy.upstream_of(name)
        if ":" in version:
            found = self._shelf.manifest(name, version)
            if found is None:
                raise NotFoundError(f"There is no thin image {name}@{version[:100]} here; ask for a tag.")
            return found
        reference = Reference.parse(f"{upstream.name}:{version}")
        shelved = self._wait_for(name, version, lambda: self._look(name, reference))
        document = self._shelf.manifest(name, shelved.manifest)
        if document is None:
            raise TemporaryError(f"{name}:{version} was removed while it was asked for.", hint="Ask for it again.")
        return document

    def blob(self, name: str, digest: str) -> bytes:
        self._policy.upstream_of(name)
        data = self._shelf.blob(name, digest)
        if data is None:
            raise NotFoundError(f"{name} has no blob {digest[:100]}.")
        return data

    def tags(self, name: str) -> list[str]:
        """The tags upstream; while upstream is down, the tags of images that were made."""
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
        """The image that a tag stands for now; while upstream does not answer, the last one known."""
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
                conversion = self._converter.convert(opened)
                written = self._converter.write(opened, conversion, self._shelf.writer(name), tag=reference.tag)
        except MicaError as error:
            _LOG.warning("%s could not be converted: %s", reference, error)
            raise
        shelved = ShelvedTag(opened.digest, written.digest, written.media_type)
        self._shelf.put_tag(name, reference.tag, shelved)
        _LOG.info("%s converted in %.1f s", reference, time.monotonic() - started_s)
        return shelved
