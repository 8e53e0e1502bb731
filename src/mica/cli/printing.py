"""What commands print: tables for people, JSON for programs, errors as a sentence with a hint."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mica.errors import MicaError, UserError
from mica.texts import one_line

_NO_WIDTH = 1 << 16
"""More characters than a path and a link's target have if every byte of them is escaped."""


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for row in rows:
        table.add_row(*(Text(one_line(str(value))) for value in row))
    # A file or a pipe has no width, so nothing is cut there.
    Console(width=None if sys.stdout.isatty() else _NO_WIDTH).print(table)


def print_facts(facts: dict[str, object], *, indent: int = 0) -> None:
    """Names and values, one a line."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        sys.stdout.write(f"{'':{indent}}{name:<{width}}  {one_line(str(value))}\n")


def writable(path: Path) -> Path:
    """The absolute path of a file that is written at the end. Raises UserError now, not after the work, if it cannot
    be."""
    path = path.absolute()
    if not os.path.isdir(path.parent):
        raise UserError(f"{path} cannot be written: {path.parent} is not a directory.")
    return path


def show_error(error: MicaError) -> None:
    sys.stderr.write(f"mica: {one_line(str(error))}\n")
    if error.hint:
        sys.stderr.write(f"      {one_line(error.hint)}\n")
