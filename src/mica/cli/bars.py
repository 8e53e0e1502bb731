"""A bar for each layer on a terminal, with rate and remaining time; nothing elsewhere."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

    from mica.oci.image import LayerSource


class LayerBars:
    """An observer of conversions. Use as a context manager; layers may come from several threads."""

    def __init__(self) -> None:
        self._bars: Progress | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bars = _new_progress()
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    @contextlib.contextmanager
    def layer(self, number: int, count: int, layer: "LayerSource") -> "Iterator[Callable[[int], None]]":
        bars = self._bars
        if bars is None:
            yield lambda _done: None
            return
        task = bars.add_task(f"Layer {number}/{count} {layer.digest[7:19]}", total=layer.size)
        try:
            yield lambda done: bars.advance(task, done)
        finally:
            bars.remove_task(task)


def _new_progress() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
