"""The operations of a node for those who mount: the layers of an image, mounted and held.

    {"op": "layers", "descriptor": {…}}    {"lower": […], "data": […]}: layers top first, and the data-only ones; with
                                           "program": "R" in the question that one is expected to start
    {"op": "status"}                       {"pid": …, "method": …, "held": […], "session": {…}, "repositories": […]}

Any thread.
"""

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mica.digest import Digest
from mica.errors import MicaError, UserError
from mica.fetch.cache import Cache
from mica.fetch.client import RepositoryClient
from mica.flight import Flight
from mica.logs import logger
from mica.node.completion import Completion
from mica.node.counts import read_counts
from mica.node.directory import NodeDirectory
from mica.node.imagecheck import Check, check_image
from mica.node.images import LayerImages, MountedImages
from mica.node.messages import ANY_REPOSITORY
from mica.node.prefetch import Prefetch
from mica.node.service import Operation
from mica.node.stack import LayerStack, Method, plan_stack
from mica.node.traces import fetch_traces
from mica.repo.catalog import NestedCatalog
from mica.thin.descriptor import ThinDescriptor, ThinLayer, parse_descriptor
from mica.thin.trace import ProgramTrace

_log = logger(__name__)
_IMAGES_AT_ONCE = 8
_REVISION_S = 60.0
"""How long a revision counts as the newest without asking."""


class _Listed:
    """Sets its event when the chunk lists of all layers are in the cache. Any thread."""

    def __init__(self, layers: Sequence[ThinLayer]) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._missing = {layer.url for layer in layers}

    def add(self, layer: ThinLayer) -> None:
        """Those of this one are."""
        with self._lock:
            self._missing.discard(layer.url)
            if not self._missing:
                self.event.set()


class Preparation:
    """What a service does for those who mount."""

    def __init__(
        self,
        cache: Cache,
        clients: Sequence[RepositoryClient],
        node: NodeDirectory,
        method: Method,
        completion: Completion | None = None,
        prefetch: Prefetch | None = None,
        check: Check = check_image,
    ) -> None:
        self._cache = cache
        self._clients = {client.fqrn: client for client in clients}
        self._numbers = {client.fqrn: number for number, client in enumerate(clients)}
        self._node = node
        self._method = method
        self._completion = completion
        self._prefetch = prefetch
        self._traces: dict[tuple[str, Digest], list[ProgramTrace]] = {}
        self._images = LayerImages(cache, check=check)
        self._mounted = MountedImages(node.layers, by_loop=method is Method.LOOP)
        self._flight: Flight[NestedCatalog] = Flight()
        self._numbering = itertools.count()
        self._listed: dict[int, dict[str, Any]] = {}
        self._roots: dict[str, tuple[float, NestedCatalog]] = {}

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
            roots = dict(zip(descriptor.repositories, pool.map(self._root, descriptor.repositories), strict=True))

            top, listed = descriptor.layers[-1], _Listed(descriptor.layers)
            learning = pool.submit(self._learn, roots[top.fqrn], top, listed.event, program)

            def obtain(layer: ThinLayer) -> Path:
                client, root = self._clients[layer.fqrn], roots[layer.fqrn]
                return self._images.obtain(client, root, layer, lambda: listed.add(layer))

            try:
                images = list(pool.map(obtain, descriptor.layers))
            finally:
                listed.event.set()
            learning.result()
            return images

    def _layers(self, request: Mapping[str, Any], held: contextlib.ExitStack) -> dict[str, Any]:
        descriptor = parse_descriptor(json.dumps(request.get("descriptor")).encode("ascii"), "The descriptor")
        program = request.get("program")
        images = self.obtain(descriptor, program if isinstance(program, str) else None)
        held.enter_context(self._listing(descriptor, images))
        mounted = [held.enter_context(self._mounted.holding(image)) for image in images]
        numbers = sorted(self._numbers[fqrn] for fqrn in descriptor.repositories)
        if self._completion is not None:
            repository = numbers[0] if len(numbers) == 1 else ANY_REPOSITORY
            held.callback(self._completion.start(images[::-1], repository).set)
        return self._stack(mounted[::-1], numbers, held).to_json()

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
        """Shown by `status` for the block."""
        number = next(self._numbering)
        self._listed[number] = {"origin": descriptor.origin, "images": [*map(str, images)], "since": int(time.time())}
        try:
            yield
        finally:
            del self._listed[number]

    def _stack(self, mounted: Sequence[Path], numbers: Sequence[int], held: contextlib.ExitStack) -> LayerStack:
        mask = None
        if self._method is Method.ORDINARY:
            mask = held.enter_context(self._mounted.holding(self._images.mask(mounted[0])))
        return plan_stack(mounted, self._cache, self._node, numbers, mask=mask)

    def _root(self, fqrn: str) -> NestedCatalog:
        return self._flight.do(fqrn, lambda: self._checked_root(fqrn))

    def _checked_root(self, fqrn: str) -> NestedCatalog:
        checked_at, root = self._roots.get(fqrn, (0.0, None))
        if root is None or time.monotonic() - checked_at > _REVISION_S:
            manifest = self._clients[fqrn].update().manifest
            root = NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
            self._roots[fqrn] = (time.monotonic(), root)
        return root

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
