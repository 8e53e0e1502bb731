"""`mica repo repair`: what was lost comes back from a replica, counters and reflog are made again."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import FqrnArgument, ProxyOption, StateOption
from mica.errors import IntegrityError

if TYPE_CHECKING:
    from mica.fetch.download import Fetcher
    from mica.publish.repair import Step


def repair(
    fqrn: FqrnArgument,
    state: StateOption,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="A replica, by URL or directory, that has lost objects."),
    ] = None,
    hash_objects: Annotated[
        bool, typer.Option("--hash", help="Also read every object, to find those that are damaged.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be repaired.")] = False,
    proxies: ProxyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each step as a line of JSON.")] = False,
) -> None:
    """Repair a repository of this host: lost objects, counters of catalogs, the reflog. Then check it.

    The exit code is 3 if something stays wrong."""
    from mica.cli.bars import counting
    from mica.cli.checking import check_place, teller
    from mica.cli.places import Places
    from mica.publish.manager import ReleaseManager
    from mica.publish.repair import RepairRules
    from mica.publish.repair import repair as repair_repository

    report = _Report(as_json=as_json)
    rules = RepairRules("hash" if hash_objects else "exist", dry_run=dry_run)
    with (
        ReleaseManager.open(state, fqrn) as manager,
        _replica(fqrn, source, proxies) as replica,
        counting(f"Repair {fqrn}") as show,
    ):
        repair_repository(manager, replica, rules, tell=report.add, progress=teller(show))
    report.end(fqrn, dry_run=dry_run)
    if dry_run or as_json:
        raise typer.Exit(IntegrityError.exit_code if report.lost else 0)
    raise typer.Exit(check_place(Places(state), fqrn, hash_objects=False, as_json=False))


@contextlib.contextmanager
def _replica(fqrn: str, source: str | None, proxies: str | None) -> "Iterator[Fetcher | None]":
    if source is None:
        yield None
        return
    from mica.fetch.counters import TrafficCounter
    from mica.fetch.location import RepositoryLocation, open_fetcher

    location = RepositoryLocation(fqrn, (source,), (), proxies or "DIRECT")
    with open_fetcher(location, TrafficCounter()) as fetcher:
        yield fetcher


class _Report:
    """A line for each step, or a line of JSON. Any thread."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._lock = threading.Lock()
        self._steps = 0
        self.lost = 0

    def add(self, step: "Step") -> None:
        import json

        with self._lock:
            self._steps += 1
            self.lost += step.kind == "lost"
            text = json.dumps(step._asdict()) if self._as_json else f"{step.kind}: {step.where}: {step.sentence}"
            sys.stdout.write(f"{text}\n")

    def end(self, fqrn: str, *, dry_run: bool) -> None:
        if self._as_json:
            return
        if not self._steps:
            sys.stdout.write(f"{fqrn}: nothing to repair\n")
        elif dry_run:
            sys.stdout.write(f"{fqrn}: nothing was changed\n")
