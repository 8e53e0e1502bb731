"""`mica repo check`: runs the check, prints its findings as they come, and says how it ended."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mica.cli.bars import counting
from mica.cli.places import Places
from mica.errors import IntegrityError
from mica.fetch.location import open_fetcher, read_keys
from mica.publish.check import CheckProgress, check_repository

if TYPE_CHECKING:
    from mica.publish.check import Finding


def check_place(places: Places, fqrn: str, *, hash_objects: bool, as_json: bool) -> int:
    """Exit code: 0 without errors (warnings are none), 3 with."""
    location = places.locate(fqrn)
    keys = read_keys(location)
    report = _JsonReport(fqrn) if as_json else _TextReport(fqrn)
    with (
        open_fetcher(location, places.counter) as fetcher,
        tempfile.TemporaryDirectory(prefix="mica-check-") as work,
        counting(f"Check {fqrn}") as show,
    ):
        objects = "hash" if hash_objects else "exist"
        for finding in check_repository(
            fetcher, fqrn, keys, objects=objects, work=Path(work), progress=teller(show),  # type: ignore[arg-type]
        ):  # fmt: skip
            report.add(finding)
    report.end()
    return IntegrityError.exit_code if report.errors else 0


def teller(show: Callable[[int, int, str], None]) -> Callable[[CheckProgress], None]:
    """What a bar shows of a check."""

    def tell(now: CheckProgress) -> None:
        text = f"{now.entries:,} entries, {now.catalogs:,} catalogs, {now.objects:,} objects"
        show(now.entries, now.of_entries, text)

    return tell


class _TextReport:
    """A line for each finding. Findings are not kept: there may be as many as entries."""

    def __init__(self, fqrn: str) -> None:
        self._fqrn = fqrn
        self._warnings = 0
        self.errors = 0

    def add(self, finding: "Finding") -> None:
        if finding.severity == "error":
            self.errors += 1
        else:
            self._warnings += 1
        sys.stdout.write(f"{finding.severity}: {finding.where}: {finding.sentence}\n")

    def end(self) -> None:
        if not self.errors:
            sys.stdout.write(f"{self._fqrn}: no errors, {self._warnings} warnings\n")


class _JsonReport:
    """One document at the end; findings wait in a file."""

    def __init__(self, fqrn: str) -> None:
        self._fqrn = fqrn
        self._file = tempfile.TemporaryFile("w+")  # noqa: SIM115 - its last reference closes it
        self.errors = 0

    def add(self, finding: "Finding") -> None:
        self.errors += finding.severity == "error"
        document = {"severity": finding.severity, "where": finding.where, "sentence": finding.sentence}
        self._file.write(json.dumps(document) + "\n")

    def end(self) -> None:
        self._file.seek(0)
        sys.stdout.write(f'{{\n "repository": {json.dumps(self._fqrn)},\n "errors": {self.errors},\n "findings": [')
        before, after = "\n  ", "]\n}\n"
        for line in self._file:
            sys.stdout.write(before + line.rstrip())
            before, after = ",\n  ", "\n ]\n}\n"
        sys.stdout.write(after)
        self._file.close()
