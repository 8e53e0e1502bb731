"""Whether a repository that is published here is well: one check for each thing that can go wrong.

    report = examine(manager, thresholds, urls)

A check looks at one thing, takes no lock, changes nothing, and never raises for what is wrong: that is a finding. To
look at one thing more, add a function to `CHECKS`. Any thread.
"""

import datetime
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from mica.errors import MicaError, in_one_line
from mica.fetch.counters import TrafficCounter
from mica.fetch.documents import fetch_revision
from mica.fetch.download import HttpFetcher, HttpLimits
from mica.fetch.routes import Routes, without_password
from mica.publish.manager import ReleaseManager
from mica.publish.resigning import published_whitelist
from mica.publish.transaction import REFLOG
from mica.repo.blacklist import Blacklist
from mica.repo.history import SIZE_LIMIT as REFLOG_LIMIT
from mica.repo.history import RefKind, parse_reflog
from mica.repo.manifest import Manifest, parse_manifest
from mica.repo.statusfile import NAME as STATUS
from mica.repo.statusfile import SIZE_LIMIT as STATUS_LIMIT
from mica.repo.statusfile import ServerJobs, parse_status
from mica.repo.trust import NOTHING_KNOWN
from mica.repo.whitelist import NAME as WHITELIST
from mica.repo.whitelist import SIZE_LIMIT as WHITELIST_LIMIT
from mica.sizes import format_size
from mica.store.base import read_limited, read_pointer
from mica.store.opening import local_directory

DAY_S: Final = 86400.0
_LIMITS: Final = HttpLimits(retries=0)
_AT_ONCE: Final = 8


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Below or above them something is a warning, or unhealthy. Seconds and bytes; 0: never."""

    whitelist_s: float = 3 * DAY_S
    whitelist_warn_s: float = 7 * DAY_S
    certificate_warn_s: float = 30 * DAY_S
    lag_s: float = DAY_S
    lag_warn_s: float = 2 * 3600.0
    free_bytes: int = 1 << 30
    free_warn_bytes: int = 10 << 30
    published_warn_s: float = 0.0
    collected_warn_s: float = 0.0


class Finding(NamedTuple):
    """`check` is the name of what was looked at."""

    level: Level
    check: str
    sentence: str


class Replica(NamedTuple):
    """A server that shows the repository. `lag_s`: for how long it lacks a revision; None if it could not be asked."""

    url: str
    revision: int | None
    lag_s: float | None
    trouble: str = ""


class Subject(NamedTuple):
    """`urls` are the servers to be asked; `now` seconds since 1970; `queue` gives the number of layers in each state of
    the queue, where there is one."""

    manager: ReleaseManager
    thresholds: Thresholds
    urls: Sequence[str]
    now: float
    queue: "QueueCounts | None" = None


QueueCounts = Callable[[], Mapping[str, int]]
Facts = dict[str, object]
Check = Callable[[Subject, Facts], Iterator[Finding]]
"""Adds what it learns to the facts."""


class Health(NamedTuple):
    fqrn: str
    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        levels = {finding.level for finding in self.findings}
        return next((level for level in (Level.UNHEALTHY, Level.WARNING) if level in levels), Level.OK)


def examine(
    manager: ReleaseManager,
    thresholds: Thresholds,
    urls: Sequence[str],
    *,
    now: float | None = None,
    queue: QueueCounts | None = None,
) -> Health:
    """`urls` besides those of the repository's settings."""
    every = tuple(dict.fromkeys((*manager.settings.urls, *urls)))
    subject = Subject(manager, thresholds, every, time.time() if now is None else now, queue)
    facts: Facts = {}
    findings: list[Finding] = []
    for check in CHECKS:
        name = check.__name__.removeprefix("_")
        try:
            findings += check(subject, facts)
        except MicaError as error:
            findings.append(Finding(Level.UNHEALTHY, name, in_one_line(error)))
    return Health(manager.fqrn, facts, tuple(findings))


def _revision(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """What clients read is verified as they do it, but for the time: that is for the whitelist's check."""
    manager = subject.manager
    newest = _newest(subject)
    facts |= {"revision": newest.revision, "published": _text(_moment(newest.published_at))}
    whitelist = read_limited(manager.store, WHITELIST, WHITELIST_LIMIT, fresh=True)
    manager.verified(manager.read_manifest(), whitelist, datetime.datetime.min.replace(tzinfo=datetime.UTC))
    age_s = subject.now - newest.published_at
    if 0 < subject.thresholds.published_warn_s < age_s:
        yield Finding(Level.WARNING, "revision", f"Nothing was published for {_days(age_s)} days.")
    if age_s < -_CLOCKS_DIFFER_S:
        yield Finding(
            Level.WARNING, "revision", "The newest revision is from the future: the clock of this machine went back."
        )


_CLOCKS_DIFFER_S: Final = 300.0


def _whitelist(subject: Subject, facts: Facts) -> Iterator[Finding]:
    whitelist = published_whitelist(subject.manager)
    left_s = whitelist.expires.timestamp() - subject.now
    facts |= {"whitelist_expires": _text(whitelist.expires), "whitelist_days": round(left_s / DAY_S, 1)}
    hint = f"Renew it: mica repo resign {subject.manager.fqrn}"
    thresholds = subject.thresholds
    if whitelist.is_expired(_moment(subject.now)):
        yield Finding(Level.UNHEALTHY, "whitelist", f"The whitelist has expired. {hint}")
    elif left_s < thresholds.whitelist_warn_s:
        level = Level.UNHEALTHY if left_s < thresholds.whitelist_s else Level.WARNING
        yield Finding(level, "whitelist", f"The whitelist expires in {_days(left_s)} days. {hint}")


def _certificate(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """No client looks at its dates, so it is never more than a warning."""
    expires = subject.manager.certificate_of(subject.manager.read_manifest()).not_valid_after_utc
    left_s = expires.timestamp() - subject.now
    facts |= {"certificate_expires": _text(expires), "certificate_days": round(left_s / DAY_S, 1)}
    if left_s < subject.thresholds.certificate_warn_s:
        when = f"expires in {_days(left_s)} days" if left_s > 0 else "has expired"
        hint = f"No client minds; a new one: mica repo resign {subject.manager.fqrn} --new-key"
        yield Finding(Level.WARNING, "certificate", f"The certificate {when}. {hint}")


def _collection(subject: Subject, facts: Facts) -> Iterator[Finding]:
    data = read_pointer(subject.manager.store, STATUS, STATUS_LIMIT)
    jobs = ServerJobs() if data is None else parse_status(data, f"{STATUS} of {subject.manager.fqrn}")
    facts["collected"] = None if jobs.last_gc is None else _text(jobs.last_gc)
    limit_s = subject.thresholds.collected_warn_s
    if not limit_s:
        return
    if jobs.last_gc is None:
        yield Finding(Level.WARNING, "collection", "Garbage was never collected.")
    elif subject.now - jobs.last_gc.timestamp() > limit_s:
        age_s = subject.now - jobs.last_gc.timestamp()
        yield Finding(Level.WARNING, "collection", f"Garbage was not collected for {_days(age_s)} days.")


def _space(subject: Subject, facts: Facts) -> Iterator[Finding]:
    """Nobody tells how much a bucket may still take."""
    directory = local_directory(subject.manager.settings.storage)
    facts["free_bytes"] = None
    if directory is None:
        return
    subject.manager.store.check_there()
    free = facts["free_bytes"] = shutil.disk_usage(directory).free
    thresholds = subject.thresholds
    if free < thresholds.free_warn_bytes:
        level = Level.UNHEALTHY if free < thresholds.free_bytes else Level.WARNING
        yield Finding(level, "space", f"{directory} has only {format_size(free)} left.")


def _replicas(subject: Subject, facts: Facts) -> Iterator[Finding]:
    newest = _newest(subject)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="replicas") as pool:
        replicas = list(pool.map(lambda url: _ask(subject, url, newest), subject.urls))
    facts["replicas"] = [replica._asdict() for replica in replicas]
    thresholds = subject.thresholds
    for replica in replicas:
        if replica.lag_s is None:
            yield Finding(Level.UNHEALTHY, "replicas", f"{replica.url}: {replica.trouble}")
        elif replica.lag_s > thresholds.lag_warn_s:
            level = Level.UNHEALTHY if replica.lag_s > thresholds.lag_s else Level.WARNING
            lag = f"{replica.lag_s / 3600:.1f} hours"
            yield Finding(
                level, "replicas",
                f"{replica.url} is at revision {replica.revision}: it lacks what came {lag} ago and since.",
            )  # fmt: skip


def _ask(subject: Subject, url: str, newest: Manifest) -> Replica:
    shown = without_password(url)
    manager = subject.manager
    try:
        with closing(HttpFetcher(Routes([url]), counter=TrafficCounter(), limits=_LIMITS)) as fetcher:
            _, revision = fetch_revision(
                fetcher, manager.fqrn, manager.keys.public_keys(), known=NOTHING_KNOWN, blacklist=Blacklist(),
                now=lambda: _moment(subject.now),
            )  # fmt: skip
    except MicaError as error:
        return Replica(shown, None, None, in_one_line(error))
    theirs = revision.manifest
    return Replica(shown, theirs.revision, _lag_s(subject, theirs, newest))


def _lag_s(subject: Subject, theirs: Manifest, newest: Manifest) -> float:
    """Since the oldest revision that it lacks was published, as far as the reflog still knows it."""
    if theirs.revision >= newest.revision:
        return 0.0
    data = read_pointer(subject.manager.store, REFLOG, REFLOG_LIMIT)
    refs = {} if data is None else parse_reflog(data, f"The reflog of {subject.manager.fqrn}").refs
    later = [at for kind, at in refs.values() if kind == RefKind.CATALOG and at > theirs.published_at]
    return max(subject.now - min(*later, newest.published_at, subject.now), 0.0)


def _queue(subject: Subject, facts: Facts) -> Iterator[Finding]:
    facts["queue"] = None
    if subject.queue is None:
        return
    counts = facts["queue"] = dict(subject.queue())
    if failed := counts.get("failed", 0):
        yield Finding(Level.WARNING, "queue", f"{failed} layers could not be made: mica layers {subject.manager.fqrn}")


def _newest(subject: Subject) -> Manifest:
    return parse_manifest(subject.manager.read_manifest(), f"The manifest of {subject.manager.fqrn}")[0]


CHECKS: Final[tuple[Check, ...]] = (_revision, _whitelist, _certificate, _collection, _space, _replicas, _queue)


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _days(seconds: float) -> str:
    return f"{seconds / DAY_S:.1f}"


def _text(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
