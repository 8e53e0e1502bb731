"""What commands print: tables for people, JSON for programs, errors as a sentence with a hint, progress bars."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mica.errors import MicaError, UserError

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_NO_WIDTH = 1 << 16
"""More than a path and a link's target can have, every byte of them escaped."""


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row))
    # A file or a pipe has no width: nothing is to be cut there.
    Console(width=None if sys.stdout.isatty() else _NO_WIDTH).print(table)


def print_facts(facts: dict[str, object]) -> None:
    """Names and values, one a line."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        sys.stdout.write(f"{name:<{width}}  {printable(str(value))}\n")


def size_text(size: int) -> str:
    """Bytes for people: `1.5 GB`."""
    steps = 0
    while size >= 1000 ** (steps + 1) and steps < len(_UNITS) - 1:
        steps += 1
    return f"{size / 1000**steps:.1f} {_UNITS[steps]}" if steps else f"{size} B"


def text_of(name: bytes) -> str:
    r"""A name from a repository for people: \xNN for what is not printable, so that no name can control a terminal."""
    return printable(name.decode("utf-8", "surrogateescape"))


def printable(text: str) -> str:
    r"""Text from outside as one line without control characters: \xNN for each byte of what is not printable."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    try:
        data = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can have it
        return f"\\u{ord(character):04x}"
    return "".join(f"\\x{byte:02x}" for byte in data)


def writable(path: Path) -> Path:
    """Where something is to be written at the end, made absolute. Raises UserError now, and not after the work."""
    path = path.absolute()
    if not os.path.isdir(path.parent):
        raise UserError(f"{path} cannot be written: {path.parent} is not a directory.")
    return path


def show_error(error: MicaError) -> None:
    sys.stderr.write(f"mica: {printable(str(error))}\n")
    if error.hint:
        sys.stderr.write(f"      {printable(error.hint)}\n")


@contextlib.contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; call the value with the bytes that were done since."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda done: bars.advance(task, done)
