"""`mica repo check`: runs the check, prints its findings, and says how it ended."""

import sys
import tempfile
from pathlib import Path

from mica.cli.output import print_json
from mica.cli.places import Places
from mica.errors import IntegrityError
from mica.fetch.location import open_fetcher, read_keys
from mica.publish.check import check_repository


def check_place(places: Places, fqrn: str, *, hash_objects: bool, as_json: bool) -> int:
    """Exit code: 0 without errors (warnings are none), 3 with."""
    location = places.locate(fqrn)
    keys = read_keys(location)
    findings = []
    with open_fetcher(location, places.counter) as fetcher, tempfile.TemporaryDirectory(prefix="mica-check-") as work:
        objects = "hash" if hash_objects else "exist"
        for finding in check_repository(fetcher, fqrn, keys, objects=objects, work=Path(work)):  # type: ignore[arg-type]
            findings.append(finding)
            if not as_json:
                print(f"{finding.severity}: {finding.where}: {finding.sentence}")  # noqa: T201 - findings are the output
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        documents = [{"severity": f.severity, "where": f.where, "sentence": f.sentence} for f in findings]
        print_json({"repository": fqrn, "errors": errors, "findings": documents})
    elif not errors:
        sys.stdout.write(f"{fqrn}: no errors, {len(findings)} warnings\n")
    return IntegrityError.exit_code if errors else 0
