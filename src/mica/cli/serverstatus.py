"""`mica server status`: asks for the health of repositories and shows it."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from mica.cli.printing import print_json, print_table
from mica.cli.queues import opened_queue
from mica.config import ServerConfig, load_config
from mica.errors import MicaError, in_one_line
from mica.publish.manager import ReleaseManager
from mica.publish.settings import published_here
from mica.server.health import Finding, Health, Level, Thresholds, examine
from mica.sizes import format_size
from mica.texts import one_line

_COLUMNS = (
    "repository",
    "health",
    "revision",
    "published",
    "whitelist",
    "certificate",
    "collected",
    "free",
    "replicas",
    "queue",
)


def show_status(state: Path, names: Sequence[str], urls: Sequence[str], config: Path | None, *, as_json: bool) -> int:
    """Exit code: 1 if a repository is unhealthy. Raises NotFoundError for a name that is not published here."""
    settings = load_config(config).server
    with contextlib.ExitStack() as stack:
        counts = _counts(stack, config)
        every = [_health(state, fqrn, urls, settings, counts) for fqrn in names or published_here(state)]
    if as_json:
        print_json([_document(health) for health in every])
    elif every:
        print_table(_COLUMNS, [_row(health) for health in every])
        for health in every:
            for finding in health.findings:
                sys.stdout.write(f"{finding.level}: {health.fqrn}: {one_line(finding.sentence)}\n")
    else:
        sys.stdout.write("No repository is published here.\n")
    return MicaError.exit_code if any(health.level is Level.UNHEALTHY for health in every) else 0


def _counts(stack: contextlib.ExitStack, config: Path | None) -> Callable[[str], Mapping[str, int]] | None:
    """The number of layers of a repository in each state of the queue; None without a queue. A queue that cannot be
    opened fails when it is asked: the rest is shown all the same."""
    try:
        queue = stack.enter_context(opened_queue(config))
    except MicaError as error:
        failure = error

        def refuse(_fqrn: str) -> Mapping[str, int]:
            raise failure

        return refuse
    if queue is None:
        return None
    return lambda fqrn: {str(row_state): count for row_state, count in queue.layers.counts(fqrn).items()}


def _health(
    state: Path,
    fqrn: str,
    urls: Sequence[str],
    settings: ServerConfig,
    counts: Callable[[str], Mapping[str, int]] | None,
) -> Health:
    values = asdict(settings)
    values.pop("replicas")
    asked = [url.replace("@fqrn@", fqrn) for url in (*settings.replicas.get(fqrn, ()), *urls)]
    try:
        with ReleaseManager.open(state, fqrn) as manager:
            return examine(manager, Thresholds(**values), asked, queue=counts and partial(counts, fqrn))
    except MicaError as error:
        if fqrn not in published_here(state):
            raise
        # Its settings cannot be read, or its storage not be opened: the others are looked at all the same.
        return Health(fqrn, {}, (Finding(Level.UNHEALTHY, "settings", in_one_line(error)),))


def _document(health: Health) -> dict[str, object]:
    findings = [finding._asdict() for finding in health.findings]
    return {"repository": health.fqrn, "health": health.level, **health.facts, "findings": findings}


def _row(health: Health) -> Sequence[object]:
    facts = health.facts
    replicas = facts.get("replicas")
    lags = [replica["lag_s"] for replica in replicas] if isinstance(replicas, list) else []
    current = sum(lag == 0 for lag in lags)
    free = facts.get("free_bytes")
    room = format_size(free) if isinstance(free, int) else "-"
    return (
        health.fqrn, health.level, facts.get("revision", "?"), facts.get("published", "?"), _days(facts, "whitelist"),
        _days(facts, "certificate"), facts.get("collected") or "never", room,
        f"{current} of {len(lags)} up to date" if lags else "-", _work(facts),
    )  # fmt: skip


def _work(facts: dict[str, object]) -> str:
    """The layers that are on their way."""
    counts = facts.get("queue")
    if not isinstance(counts, dict):
        return "-"
    return ", ".join(f"{count} {state}" for state, count in counts.items() if state != "published") or "empty"


def _days(facts: dict[str, object], what: str) -> str:
    days = facts.get(f"{what}_days")
    return f"{days} days" if isinstance(days, float) else "?"
