"""The operations of a node for programs that mount: the layers of an image, mounted and held.

    {"op": "layers", "descriptor": {…}}    {"lower": […], "data": […]}: layers top first, and the data-only ones; with
                                           "program": "R" in the question that one is expected to start
    {"op": "status"}                       {"pid": …, "method": …, "held": […], "session": {…}, "repositories": […]}

Any thread.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from mica.cache.cache import Cache
from mica.dataplane.completion import Completion
from mica.dataplane.counts import read_counts
from mica.dataplane.datalayers import plan_stack
from mica.dataplane.imagecheck import Check, check_image
from mica.dataplane.images import LayerImages, MountedImages
from mica.dataplane.messages import ANY_REPOSITORY
from mica.dataplane.nodedirectory import NodeDirectory
from mica.dataplane.prefetch import Prefetch
from mica.dataplane.service import Operation
from mica.dataplane.traces import fetch_traces
from mica.digest import Digest
from mica.errors import MicaError, NotFoundError, TemporaryError, UserError
from mica.fetch.client import RepositoryClient
from mica.files import mapped_os_errors
from mica.flight import Flight
from mica.layers.stack import LayerStack, Method
from mica.logs import logger
from mica.repo.catalog import NestedCatalog
from mica.thin.descriptor import ThinDescriptor, ThinLayer, parse_descriptor_document
from mica.thin.trace import ProgramTrace
from mica.union.directories import Tree
from mica.union.layerplan import shown_layers

_log = logger(__name__)
_IMAGES_AT_ONCE = 8
_REVISION_S = 60.0
"""How long a revision counts as the newest without asking."""


class _Root(NamedTuple):
    """The root catalog of a revision that was the newest at a time of the monotonic clock."""

    catalog: NestedCatalog
    revision: int
    checked_at: float


def _not_there_yet(client: RepositoryClient, revision: int, wanted: int) -> TemporaryError:
    return TemporaryError(
        f"The image's layers are in revision {wanted} of {client.fqrn}, and its servers have revision {revision}.",
        hint="A replica or a proxy lags behind. Try again later, or ask another server.",
    )


class _Listed:
    """Sets its event when the chunk lists of all layers are in the cache. Any thread."""

    def __init__(self, layers: Sequence[ThinLayer]) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._missing = {layer.url for layer in layers}

    def add(self, layer: ThinLayer) -> None:
        """The chunk lists of this layer are in the cache."""
        with self._lock:
            self._missing.discard(layer.url)
            if not self._missing:
                self.event.set()


class Preparation:
    """What a service does for programs that mount."""

    def __init__(
        self,
        cache: Cache,
        clients: Sequence[RepositoryClient],
        node: NodeDirectory,
        method: Method,
        completion: Completion | None = None,
        prefetch: Prefetch | None = None,
        check: Check = check_image,
        *,
        one_by_one: bool | None = None,
    ) -> None:
        self._cache = cache
        self._clients = {client.fqrn: client for client in clients}
        self._numbers = {client.fqrn: number for number, client in enumerate(clients)}
        self._node = node
        self._method = method
        self._one_by_one = one_by_one
        self._completion = completion
        self._prefetch = prefetch
        self._traces: dict[tuple[str, Digest], list[ProgramTrace]] = {}
        self._images = LayerImages(cache, check=check)
        self._mounted = MountedImages(node.layers, by_loop=method.by_loop)
        self._flight: Flight[_Root] = Flight()
        self._numbering = itertools.count()
        self._listed: dict[int, dict[str, Any]] = {}
        self._roots: dict[str, _Root] = {}

    @property
    def operations(self) -> Mapping[str, Operation]:
        return {"layers": self._layers, "status": self._status}

    def obtain(self, descriptor: ThinDescriptor, program: str | None = None) -> list[Path]:
        """The metadata images of an image's layers, bottom first; `program` is about to start in it."""
        unknown = sorted(descriptor.repositories - self._clients.keys())
        if unknown:
            raise UserError(
                f"This node is not configured for repository {unknown[0]}.",
                hint=f"It knows {', '.join(sorted(self._clients)) or 'none'}.",
            )
        with ThreadPoolExecutor(_IMAGES_AT_ONCE, thread_name_prefix="images") as pool:
            wanted = {fqrn: descriptor.revision_of(fqrn) for fqrn in descriptor.repositories}
            roots = dict(zip(wanted, pool.map(self._root, wanted, wanted.values()), strict=True))

            top, listed = descriptor.layers[-1], _Listed(descriptor.layers)
            learning = pool.submit(self._learn, roots[top.fqrn].catalog, top, listed.event, program)

            def obtain(layer: ThinLayer) -> Path:
                client, root = self._clients[layer.fqrn], roots[layer.fqrn]
                try:
                    return self._images.obtain(client, root.catalog, layer, lambda: listed.add(layer))
                except NotFoundError as error:
                    if root.revision >= wanted[layer.fqrn]:
                        raise
                    raise _not_there_yet(client, root.revision, wanted[layer.fqrn]) from error

            try:
                images = list(pool.map(obtain, descriptor.layers))
            finally:
                listed.event.set()
            learning.result()
            return images

    def _layers(self, request: Mapping[str, Any], held: contextlib.ExitStack) -> dict[str, Any]:
        descriptor = parse_descriptor_document(request.get("descriptor"), "The descriptor")
        program = request.get("program")
        images = self.obtain(descriptor, program if isinstance(program, str) else None)
        held.enter_context(self._listing(descriptor, images))
        mounted = self._mount(images, held)
        numbers = sorted(self._numbers[fqrn] for fqrn in descriptor.repositories)
        if self._completion is not None:
            repository = numbers[0] if len(numbers) == 1 else ANY_REPOSITORY
            held.callback(self._completion.start(images[::-1], repository).set)
        return self._stack(mounted, numbers, held).to_json()

    def _mount(self, images: Sequence[Path], held: contextlib.ExitStack) -> list[Path]:
        """Mount images, given bottom first. Returns mounts, top first: the images that show, with the sheets that they
        need, and on top implied directories with the attributes that they should have."""

        def mount(image: Path) -> Path:
            return held.enter_context(self._mounted.holding(image))

        with mapped_os_errors("look at the layers"):
            return shown_layers(
                [Tree(mount(image), self._images.implied(image)) for image in images[::-1]],
                lambda sheet, _: mount(self._images.sheet(sheet)),
                lambda directories: mount(self._images.directories(directories)),
            )

    def _learn(self, root: NestedCatalog, top: ThinLayer, listed: threading.Event, program: str | None) -> None:
        """The traces of images with this top layer, fetched once for each revision."""
        if self._prefetch is None:
            return
        key = (top.url, root.digest)
        if key not in self._traces:
            try:
                self._traces[key] = fetch_traces(self._clients[top.fqrn], root, top)
            except MicaError as error:
                _log.warning("%s starts without its traces: %s", top.url, error)
                return
        self._prefetch.learn(self._traces[key], self._numbers[top.fqrn], listed, program)

    @contextlib.contextmanager
    def _listing(self, descriptor: ThinDescriptor, images: Sequence[Path]) -> Iterator[None]:
        """`status` shows the layers for the block."""
        number = next(self._numbering)
        self._listed[number] = {"origin": descriptor.origin, "images": [*map(str, images)], "since": int(time.time())}
        try:
            yield
        finally:
            del self._listed[number]

    def _stack(self, mounted: Sequence[Path], numbers: Sequence[int], held: contextlib.ExitStack) -> LayerStack:
        mask = None
        if not self._method.has_data_layers:
            mask = held.enter_context(self._mounted.holding(self._images.mask(mounted)))
        return plan_stack(mounted, self._cache, self._node, numbers, mask=mask, one_by_one=self._one_by_one)

    def _root(self, fqrn: str, at_least: int) -> "_Root":
        """The newest revision. What is known counts for a while, unless it is older than `at_least`: then the servers
        are asked now, past all caches."""
        root = self._roots.get(fqrn)
        if root is not None and root.revision >= at_least and time.monotonic() - root.checked_at <= _REVISION_S:
            return root
        return self._flight.do((fqrn, at_least), lambda: self._newest_root(fqrn))

    def _newest_root(self, fqrn: str) -> "_Root":
        manifest = self._clients[fqrn].update().manifest
        catalog = NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
        self._roots[fqrn] = _Root(catalog, manifest.revision, time.monotonic())
        return self._roots[fqrn]

    def _status(self, _request: Mapping[str, Any], _held: contextlib.ExitStack) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "method": self._method.value,
            "cache": str(self._cache.root),
            "held": list(self._listed.values()),
            "session": read_counts(self._node.counts)._asdict(),
            "repositories": [
                {"fqrn": fqrn, "traffic": client.counter.read()._asdict()} for fqrn, client in self._clients.items()
            ],
        }
