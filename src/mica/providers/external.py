"""Layers from another client's mount, such as /cvmfs. Any thread."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mica.layers.provider import check_allowed
from mica.layers.stack import LayerStack
from mica.layers.trees import find_layer_trees
from mica.thin.descriptor import ThinDescriptor


class ExternalProvider:
    """Layer trees as published, below a directory where another client shows repositories. `allowed`: repositories
    whose layers may be used; None: all."""

    def __init__(self, root: Path, allowed: frozenset[str] | None = None) -> None:
        self._root = root
        self._allowed = allowed

    def check(self, descriptor: ThinDescriptor) -> None:
        check_allowed(descriptor, self._allowed)

    @contextlib.contextmanager
    def layers(self, descriptor: ThinDescriptor) -> Iterator[LayerStack]:
        self.check(descriptor)
        yield LayerStack(find_layer_trees(self._root, descriptor), untrusted=self._root)
