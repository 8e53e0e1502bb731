"""Mounted repositories as a section of `mica status`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mica.cli.bars import progress
from mica.cli.statussections import NOT_COUNTED, Section, Thing
from mica.errors import MicaError
from mica.files import mapped_os_errors
from mica.mount.status import MountStatus
from mica.mount.statusreport import Report, State, is_repository, report_mounts
from mica.mountinfo import Mount, mount_of, read_mounts
from mica.sizes import format_size
from mica.texts import one_line

if TYPE_CHECKING:
    from mica.fetch.localshare import LocalShare


@dataclass(frozen=True, slots=True)
class _Share:
    """What is local, or why that is not known."""

    value: "LocalShare | None"
    reason: str = ""


def repository_mounts(directory: Path | None, *, count: bool = False) -> Sequence[Section]:
    """With `count` the section says how much of each is local."""
    mounts = [mount for mount in _mounts(directory) if is_repository(mount)]
    both = [(report, _share_of(report, count=count)) for report in report_mounts(mounts)]
    things = [_thing(report, share) for report, share in both]
    return [Section("repositories", things, [_facts(report, share) for report, share in both])]


def _mounts(directory: Path | None) -> list[Mount]:
    if directory is None:
        return read_mounts()
    with mapped_os_errors(f"look at {directory}"):
        found = mount_of(directory)
    return [] if found is None else [found]


def _share_of(report: Report, *, count: bool) -> _Share | None:
    if report.status is None:
        return None
    return _share(report.status) if count else _Share(None, NOT_COUNTED)


def _share(status: MountStatus) -> _Share:
    # It takes a quarter of a second to import what reads catalogs.
    from mica.cache.cache import Cache
    from mica.digest import Digest
    from mica.fetch.localshare import measure_local_share
    from mica.repo.catalog import NestedCatalog

    try:
        root = NestedCatalog(b"", Digest.parse(status.root_catalog), status.root_catalog_size)
    except ValueError:
        return _Share(None, "its server names no catalog")
    if not os.path.isdir(status.cache):  # Cache() would make it
        return _Share(None, "the cache is gone")
    try:
        with Cache(Path(status.cache)) as cache, progress(status.fqrn) as advance:
            share = measure_local_share(cache, root, progress=advance)
    except (MicaError, PermissionError) as error:
        is_refused = isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError)
        return _Share(None, "the cache belongs to another user" if is_refused else str(error))
    return _Share(share, "" if share else "not even its root catalog is in the cache")


def _thing(report: Report, share: _Share | None) -> Thing:
    status = report.status
    target = one_line(os.fsdecode(report.target))
    title = f"Repository {report.fqrn} at {target}"
    if status is None or share is None:
        hint = f": mica umount {target}" if report.state is State.GONE else ""
        return Thing(title, {"state": f"{report.state}{hint}"})
    errors = f"; {status.io_errors} reads failed" if status.io_errors else ""
    lines = {
        "state": f"{report.state} revision {status.revision} for {status.uptime_s} s, process {status.pid}",
        "server": status.host if not status.proxy else f"{status.host} through {status.proxy}",
        "cache": status.cache,
        "local": _share_text(share),
        "fetched": f"{format_size(status.transferred_bytes)} in {status.requests} requests",
        "opened": f"{status.files_opened} files{errors}",
        "passthrough": _passthrough_text(status),
    }
    return Thing(title, lines)


def _share_text(share: _Share) -> str:
    value = share.value
    if value is None:
        return share.reason if share.reason == NOT_COUNTED else f"unknown: {share.reason}"
    percent = 100 * value.local_bytes / value.size_bytes if value.size_bytes else 100.0
    text = f"{percent:.1f} % of {format_size(value.size_bytes)}, {value.local_files} of {value.files} files"
    if value.unseen_catalogs:
        text += f"; {value.unseen_catalogs} of {value.catalogs} catalogs not looked into"
    return text


def _passthrough_text(status: MountStatus) -> str:
    if status.passthrough_refusal:
        return f"no: {status.passthrough_refusal}"
    return f"from {format_size(status.passthrough_from_bytes)}"


def _facts(report: Report, share: _Share | None) -> dict[str, object]:
    facts: dict[str, object] = {
        "repository": report.fqrn,
        "directory": one_line(os.fsdecode(report.target)),
        "state": report.state.name.lower(),
    }
    if report.status is None or share is None:
        return facts
    local = None if share.value is None else share.value._asdict()
    return facts | report.status._asdict() | {"local": local, "local_unknown": share.reason}
