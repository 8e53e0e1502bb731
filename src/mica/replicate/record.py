"""What a host keeps of each replica that it makes, below its state directory.

    <state>/replicas/<fqrn>-<12 digits of the destination's SHA-256>/
        record.json     the last replication, and one that did not end
        reflog.chksum   digest of the replica's reflog, which the stock server wants when it takes over
        lock            held while it is replicated
        work/           catalogs on their way; emptied when a replication begins

Parsing and formatting, and the functions that read and write the files. Any thread.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mica.errors import IntegrityError, TemporaryError
from mica.files import locked, locked_in_turn, mapped_os_errors, remove_unfinished, replace_file
from mica.store.opening import local_directory

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A replication that began and has not flushed all that it put: the store's time of its beginning, and the run of
    the kernel in which that was."""

    since: float
    boot: str


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """`revision` and `ended_at` (seconds since 1970) are those of the last replication that was complete, or 0.
    `has_conditions` is what was found out about a server of S3 (store/s3probe.py), None before."""

    repository: str
    source: str
    destination: str
    revision: int = 0
    ended_at: int = 0
    unfinished: Unfinished | None = None
    has_conditions: bool | None = None


class ReplicaHome:
    """The directory of one replica."""

    def __init__(self, state: Path, fqrn: str, destination: str) -> None:
        digits = hashlib.sha256(destination.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        self.directory = state / "replicas" / f"{fqrn}-{digits}"
        self._destination = destination

    @property
    def work(self) -> Path:
        return self.directory / "work"

    def read(self) -> ReplicaRecord | None:
        """Raises IntegrityError for a damaged record."""
        path = self.directory / "record.json"
        with mapped_os_errors(f"read {path}"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None
        return parse_record(data, str(path))

    def write(self, record: ReplicaRecord) -> None:
        with mapped_os_errors(f"write into {self.directory}"):
            replace_file(self.directory / "record.json", format_record(record), mode=0o600)

    def write_reflog_checksum(self, text: str) -> None:
        with mapped_os_errors(f"write into {self.directory}"):
            replace_file(self.directory / "reflog.chksum", text.encode("ascii"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raises TemporaryError if the destination is replicated already: by this host, or into this directory."""
        with contextlib.ExitStack() as stack:
            with mapped_os_errors(f"use {self.directory}"):
                self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                stack.enter_context(locked(self.directory / "lock", what=f"The replica {self._destination}"))
                remove_unfinished(self.directory)
                self._clear_work()
            place = local_directory(self._destination)
            if place is not None and place.is_dir():
                with mapped_os_errors(f"lock {place}"):
                    is_ours = stack.enter_context(locked_in_turn(place, wait=False))
                if not is_ours:
                    raise TemporaryError(
                        f"The replica {self._destination} is in use by another process.",
                        hint="Try again when it is done.",
                    )
            try:
                yield
            finally:
                shutil.rmtree(self.work, ignore_errors=True)

    def _clear_work(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True, exist_ok=True)


def read_records(state: Path) -> list[ReplicaRecord]:
    """Those of all replicas that this host makes, by repository and destination. Raises IntegrityError."""
    found = []
    for path in (state / "replicas").glob("*/record.json"):
        with mapped_os_errors(f"read {path}"):
            found.append(parse_record(path.read_bytes(), str(path)))
    return sorted(found, key=lambda record: (record.repository, record.destination))


def boot_id() -> str:
    """Of this run of the kernel; empty where the kernel does not tell."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def format_record(record: ReplicaRecord) -> bytes:
    return json.dumps(asdict(record), indent=1).encode("utf-8") + b"\n"


def parse_record(data: bytes, what: str) -> ReplicaRecord:
    """Raises IntegrityError naming `what`."""
    try:
        values: dict[str, Any] = json.loads(data)
        unfinished, has_conditions = values["unfinished"], values.get("has_conditions")
        return ReplicaRecord(
            str(values["repository"]),
            str(values["source"]),
            str(values["destination"]),
            int(values["revision"]),
            int(values["ended_at"]),
            None if unfinished is None else Unfinished(float(unfinished["since"]), str(unfinished["boot"])),
            None if has_conditions is None else bool(has_conditions),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(
            f"The record of a replica is damaged: {what}.",
            hint="Remove it; if this machine lost power during a replication, check the replica with --hash first.",
        ) from error
