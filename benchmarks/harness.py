"""Rows of figures: our median beside the median of a baseline, taken turn by turn in the same run."""

import fnmatch
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
    """Two things to measure, each returning one figure. `warm_ups` is how often both run before it counts."""

    ours: Callable[[], float]
    baseline: Callable[[], float] | None = None
    repeats: int = REPEATS
    warm_ups: int = 0


Setup = Callable[[], AbstractContextManager[Pair]]
SharedSetup = Callable[[], AbstractContextManager[Mapping[str, Pair]]]


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that one preparation serves."""

    names: tuple[str, ...]
    unit: str
    setup: SharedSetup


_GROUPS: list[_Group] = []


def row(name: str, unit: str) -> Callable[[Setup], Setup]:
    """Register a context manager that prepares a pair and cleans up after it."""

    def register(setup: Setup) -> Setup:
        @contextmanager
        def alone() -> Iterator[Mapping[str, Pair]]:
            with setup() as pair:
                yield {name: pair}

        _GROUPS.append(_Group((name,), unit, alone))
        return setup

    return register


def rows(names: Sequence[str], unit: str) -> Callable[[SharedSetup], SharedSetup]:
    """Register a context manager that prepares pairs by name; those not asked for are not run."""

    def register(setup: SharedSetup) -> SharedSetup:
        _GROUPS.append(_Group(tuple(names), unit, setup))
        return setup

    return register


def run_rows(pattern: str) -> Iterator[Result]:
    """Measure the rows that match a glob, in the order of their registration."""
    for group in _GROUPS:
        wanted = fnmatch.filter(group.names, pattern)
        if not wanted:
            continue
        print(f"{' '.join(wanted)} …", file=sys.stderr, flush=True)
        with group.setup() as pairs:
            for name in wanted:
                yield _measure(name, group.unit, pairs[name])


def _measure(name: str, unit: str, pair: Pair) -> Result:
    for _ in range(pair.warm_ups):
        pair.ours()
        if pair.baseline is not None:
            pair.baseline()
    ours, theirs = [], []
    for _ in range(pair.repeats):
        ours.append(pair.ours())
        if pair.baseline is not None:
            theirs.append(pair.baseline())
    value = statistics.median(ours)
    baseline = statistics.median(theirs) if theirs else None
    ratio = round(value / baseline, 3) if baseline else None
    return Result(
        name, round(value, 4), unit, None if baseline is None else round(baseline, 4), ratio, len(ours),
        round(min(ours), 4), round(max(ours), 4),
    )  # fmt: skip


def keep(results: Iterable[Result]) -> list[Result]:
    """Write each as soon as it is measured, keeping other rows of earlier runs."""
    kept = []
    for result in results:
        kept.append(result)
        _write(kept)
    return kept


def _write(results: list[Result]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    names = {result.name for result in results}
    merged = [one for one in kept if one["name"] not in names] + [asdict(result) for result in results]
    RESULTS.write_text(json.dumps(merged, indent=1) + "\n")


def show(results: list[Result]) -> None:
    """As a table."""
    table = Table("row", "ours", "baseline", "ratio", "unit", "n", "min", "max", box=SIMPLE_HEAD)
    for result in results:
        baseline = "" if result.baseline is None else f"{result.baseline:g}"
        ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
        table.add_row(
            result.name, f"{result.value:g}", baseline, ratio, result.unit, str(result.n), f"{result.min:g}",
            f"{result.max:g}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(table)
