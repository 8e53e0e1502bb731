"""`mica repo gc`: shows what a collection of garbage removes, or removed."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.bars import counting
from mica.cli.options import FqrnArgument, JsonOption, StateOption, WaitOption
from mica.cli.printing import print_facts, print_json, print_table
from mica.sizes import format_size

if TYPE_CHECKING:
    from mica.collect.report import CollectionReport
    from mica.collect.sweeping import Sum
    from mica.publish.settings import CollectionSettings

_MOST_LINES = 200


def gc(
    fqrn: FqrnArgument,
    state: StateOption,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be removed, and change nothing.")
    ] = False,
    keep_revisions: Annotated[
        int | None,
        typer.Option(min=1, help="Keep so many revisions, the newest one included. Default: settings, or 3."),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Keep what was replaced, or wanted by nobody, for so many days: nodes may still use it. Default: "
            "settings, or 14.",
        ),
    ] = None,
    auto_tag_days: Annotated[
        float | None,
        typer.Option(min=0, help="Remove automatic tags after so many days; 0: never. Default: settings, or 90."),
    ] = None,
    grace_days: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Leave alone what was stored in the last so many days: a publication that goes on may need it. "
            "Default: settings, or 7.",
        ),
    ] = None,
    wait_s: WaitOption = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Remove what nobody needs: old revisions, images that no recipe, link or tag wants, layers that no image has, and
    the objects of all these. Tags that somebody gave stay, with all that they name."""
    from mica.collect.collection import opened_collection
    from mica.collect.retention import rules_from
    from mica.publish.manager import ReleaseManager

    with ReleaseManager.open(state, fqrn) as manager:
        given = (keep_revisions, keep_days, auto_tag_days, grace_days)
        rules = rules_from(_chosen(manager.settings.gc, given))
        rules.check()
        with opened_collection(manager, rules, wait_s=wait_s, phase=_phase) as collection:
            report = collection.plan() if dry_run else collection.run()
    if as_json:
        print_json(report.to_json())
    else:
        _print_report(report)
    for warning in report.warnings:
        sys.stderr.write(f"mica: {warning}\n")


def _chosen(
    settings: "CollectionSettings", given: tuple[int | None, float | None, float | None, float | None]
) -> "CollectionSettings":
    from dataclasses import replace

    names = ("keep_revisions", "keep_days", "auto_tag_days", "grace_days")
    return replace(settings, **{name: value for name, value in zip(names, given, strict=True) if value is not None})  # type: ignore[arg-type]


@contextlib.contextmanager
def _phase(name: str) -> Iterator[Callable[[int], None]]:
    lock = threading.Lock()
    total = 0

    with counting(name) as show:

        def seen(objects: int) -> None:
            nonlocal total
            with lock:
                total += objects
                show(total, 0, f"{total:,} objects")

        yield seen


def _print_report(report: "CollectionReport") -> None:
    lines = list(report.lines())
    rows = [
        (line.kind, line.name[:64], line.reason, "" if line.is_due else _date(line.due_s), line.sum.objects,
         format_size(line.sum.bytes))
        for line in lines[:_MOST_LINES]
    ]  # fmt: skip
    if rows:
        print_table(("what", "name", "reason", "not before", "objects", "size"), rows)
    if len(lines) > _MOST_LINES:
        sys.stdout.write(f"and {len(lines) - _MOST_LINES} more: --json lists them\n")
    removed = report.survey.removed if report.is_done else report.condemned
    print_facts({
        "repository": report.fqrn,
        "revision": report.revision,
        "removed" if report.is_done else "would remove": _sum(removed),
        "kept": f"{_sum(report.kept)}, {len(report.needs.revisions)} revisions",
        "too young": _sum(report.young),
    })  # fmt: skip


def _sum(total: "Sum") -> str:
    return f"{total.objects} objects, {format_size(total.bytes)}"


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))
