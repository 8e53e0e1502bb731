"""What the last collection of a repository did, for whoever watches the repository: `<home>/last-gc.json`.

    {"version": 1, "began": <time>, "ended": <time>, "report": {…}}     as `mica repo gc --json` prints it

Times are seconds since 1970. A collection that failed leaves the record of the one before.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from mica.errors import UserError
from mica.files import mapped_os_errors, replace_file

LAST_RUN = "last-gc.json"
_VERSION = 1


class LastRun(NamedTuple):
    began: float
    ended: float
    report: dict[str, Any]


def write_last_run(home: Path, run: LastRun) -> None:
    document = {"version": _VERSION, "began": int(run.began), "ended": int(run.ended), "report": run.report}
    with mapped_os_errors(f"write {home / LAST_RUN}"):
        replace_file(home / LAST_RUN, json.dumps(document, indent=1).encode("utf-8") + b"\n")


def read_last_run(home: Path) -> LastRun | None:
    """None if garbage was never collected. Raises UserError for a file that is not such a record."""
    path = home / LAST_RUN
    with mapped_os_errors(f"read {path}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        document: dict[str, Any] = json.loads(data)
        if document["version"] != _VERSION:
            raise ValueError("another version")
        return LastRun(float(document["began"]), float(document["ended"]), dict(document["report"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not the record of a garbage collection.", hint="The next one writes it.") from error
