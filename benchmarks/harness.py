"""Rows of figures: our median beside the median of a baseline, taken turn by turn in the same run."""

import fnmatch
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent.parent / "build" / "bench" / "results.json"
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Result:
    """`ratio` is ours / baseline, None where there is none; `min` and `max` are ours."""

    name: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    n: int
    min: float
    max: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two things to measure, each returning one figure."""

    ours: Callable[[], float]
    baseline: Callable[[], float] | None = None
    repeats: int = REPEATS


Setup = Callable[[], AbstractContextManager[Pair]]


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    unit: str
    setup: Setup


_ROWS: list[_Row] = []


def row(name: str, unit: str) -> Callable[[Setup], Setup]:
    """Register a context manager that prepares a pair and cleans up after it."""

    def register(setup: Setup) -> Setup:
        _ROWS.append(_Row(name, unit, setup))
        return setup

    return register


def run_rows(pattern: str) -> Iterator[Result]:
    """Measure the rows that match a glob, in the order of their registration."""
    for each in _ROWS:
        if fnmatch.fnmatch(each.name, pattern):
            print(f"{each.name} …", file=sys.stderr, flush=True)
            with each.setup() as pair:
                yield _measure(each, pair)


def _measure(each: _Row, pair: Pair) -> Result:
    ours, theirs = [], []
    for _ in range(pair.repeats):
        ours.append(pair.ours())
        if pair.baseline is not None:
            theirs.append(pair.baseline())
    value = statistics.median(ours)
    baseline = statistics.median(theirs) if theirs else None
    ratio = round(value / baseline, 3) if baseline else None
    return Result(
        each.name, round(value, 4), each.unit, None if baseline is None else round(baseline, 4), ratio, len(ours),
        round(min(ours), 4), round(max(ours), 4),
    )  # fmt: skip


def report(results: list[Result]) -> None:
    """Write what was measured, keeping other rows of earlier runs, and show it."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    names = {result.name for result in results}
    merged = [one for one in kept if one["name"] not in names] + [asdict(result) for result in results]
    RESULTS.write_text(json.dumps(merged, indent=1) + "\n")
    table = Table("row", "ours", "baseline", "ratio", "unit", "n", "min", "max", box=SIMPLE_HEAD)
    for result in results:
        baseline = "" if result.baseline is None else f"{result.baseline:g}"
        ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
        table.add_row(
            result.name, f"{result.value:g}", baseline, ratio, result.unit, str(result.n), f"{result.min:g}",
            f"{result.max:g}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(table)
