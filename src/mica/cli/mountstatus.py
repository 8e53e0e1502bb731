"""Mounted repositories as a section of `mica status`."""

import os
from dataclasses import dataclass
from pathlib import Path

from mica.cli.output import progress, text_of
from mica.cli.status import Section
from mica.digest import Digest
from mica.errors import MicaError
from mica.fetch.cache import Cache
from mica.fetch.localshare import LocalShare, measure_local_share
from mica.files import mapped_os_errors
from mica.mount.inquiry import Report, State, is_repository, report_mounts
from mica.mount.mountinfo import Mount, mount_of, read_mounts
from mica.mount.mountstatus import MountStatus
from mica.repo.catalog import NestedCatalog
from mica.sizes import format_size

_COLUMNS = (
    "repository", "directory", "state", "revision", "local", "opened", "requests", "received", "errors", "passthrough",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Share:
    """What is local, or why that is not known."""

    value: LocalShare | None
    reason: str = ""


def repository_mounts(directory: Path | None) -> Section:
    mounts = [mount for mount in _mounts(directory) if is_repository(mount)]
    reports = report_mounts(mounts)
    shares = [None if report.status is None else _share(report.status) for report in reports]
    both = list(zip(reports, shares, strict=True))
    return Section(
        key="repositories",
        title="Repositories",
        columns=_COLUMNS,
        rows=[_row(report, share) for report, share in both],
        facts=[_facts(report, share) for report, share in both],
    )


def _mounts(directory: Path | None) -> list[Mount]:
    if directory is None:
        return read_mounts()
    with mapped_os_errors(f"look at {directory}"):
        found = mount_of(directory)
    return [] if found is None else [found]


def _share(status: MountStatus) -> _Share:
    try:
        root = NestedCatalog(b"", Digest.parse(status.root_catalog), status.root_catalog_size)
    except ValueError:
        return _Share(None, "its server names no catalog")
    if not os.path.isdir(status.cache):  # it would be made
        return _Share(None, "the cache is gone")
    try:
        with Cache(Path(status.cache)) as cache, progress(status.fqrn) as advance:
            share = measure_local_share(cache, root, progress=advance)
    except (MicaError, PermissionError) as error:
        is_refused = isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError)
        return _Share(None, "the cache belongs to somebody else" if is_refused else str(error))
    return _Share(share, "" if share else "not even its root catalog is in the cache")


def _row(report: Report, share: _Share | None) -> tuple[object, ...]:
    status = report.status
    target = text_of(report.target)
    if status is None or share is None:
        hint = f": mica umount {target}" if report.state is State.GONE else ""
        return report.fqrn, target, f"{report.state}{hint}", *[""] * (len(_COLUMNS) - 3)
    return (
        report.fqrn, target, report.state, status.revision, _share_text(share), status.files_opened, status.requests,
        format_size(status.transferred_bytes), status.io_errors, _passthrough_text(status),
    )  # fmt: skip


def _share_text(share: _Share) -> str:
    value = share.value
    if value is None:
        return f"unknown: {share.reason}"
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
        "directory": text_of(report.target),
        "state": report.state.name.lower(),
    }
    if report.status is None or share is None:
        return facts
    local = None if share.value is None else share.value._asdict()
    return facts | report.status._asdict() | {"local": local, "local_unknown": share.reason}
