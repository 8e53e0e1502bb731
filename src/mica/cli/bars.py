"""Bars on a terminal, nothing elsewhere: one for some work, or one for each layer. Sizes as in messages (sizes.py)."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Self

from mica.sizes import format_size

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from mica.oci.image import LayerSource


class LayerBars:
    """An observer of conversions. Use as a context manager; layers may come from several threads."""

    def __init__(self) -> None:
        self._bars: Progress | None = None

    def __enter__(self) -> Self:
        if _is_terminal():
            from rich.progress import TimeRemainingColumn

            self._bars = _new_progress(TimeRemainingColumn())
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


@contextlib.contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """One bar. Call the value of the block with the bytes that were done since the last call."""
    if not _is_terminal():
        yield lambda _done: None
        return
    from rich.progress import TimeElapsedColumn

    with _new_progress(TimeElapsedColumn()) as bars:
        task = bars.add_task(title, total=total)
        yield lambda done: bars.advance(task, done)


@contextlib.contextmanager
def counting(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """One bar; call the value with what is done, of how much (0: not known), and a text that says more."""
    if not _is_terminal():
        yield lambda _done, _total, _text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[more]}"), TimeElapsedColumn()
    # On a terminal the library writes lines of output above the bar; into a file they go as they are.
    redirect = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect) as bars:
        task = bars.add_task(title, total=None, more="")
        yield lambda done, total, text: bars.update(task, completed=done, total=total or None, more=text)


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _new_progress(time: "ProgressColumn") -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class SpeedColumn(ProgressColumn):
        """The library's own has powers of 1000 only."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("?" if speed is None else f"{format_size(int(speed))}/s", style="progress.data.speed")

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), SpeedColumn(), time
    return Progress(*columns, console=Console(stderr=True), transient=True)
