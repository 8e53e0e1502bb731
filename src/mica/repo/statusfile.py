"""`.cvmfs_status.json`: when the jobs on the server side last ran (docs/format/status.md).

Stock tools read and write it too, and monitoring reads it over HTTP. Pure; any thread.
"""

import datetime
import json
from typing import Any, NamedTuple

from mica.errors import IntegrityError, explain_parse_error

NAME = ".cvmfs_status.json"
SIZE_LIMIT = 64 << 10
_FORMS = ("%a %b %d %H:%M:%S UTC %Y", "%a %b %d %I:%M:%S %p UTC %Y")
"""What date(1) prints with --utc, in the locales C and en_US."""


class ServerJobs(NamedTuple):
    """Times are None for jobs that never ran or whose time cannot be read."""

    last_snapshot: datetime.datetime | None = None
    last_gc: datetime.datetime | None = None
    last_check: datetime.datetime | None = None
    check_succeeded: bool | None = None


def parse_status(data: bytes, what: str) -> ServerJobs:
    """Raises IntegrityError naming `what`."""
    document = _document(data, what)
    result = {"succeeded": True, "failed": False}.get(str(document.get("check_status")))
    snapshot, collection, check = (_time(document.get(name)) for name in ("last_snapshot", "last_gc", "last_check"))
    return ServerJobs(snapshot, collection, check, result)


def updated_status(data: bytes | None, what: str, **times: datetime.datetime) -> bytes:
    """The file with new times of `last_gc`, `last_snapshot` or `last_check`; what else it has stays. `data` is None
    where there is no file yet."""
    unknown = times.keys() - {"last_snapshot", "last_gc", "last_check"}
    assert not unknown, unknown
    document = {} if data is None else _document(data, what)
    document |= {name: time.astimezone(datetime.UTC).strftime(_FORMS[0]) for name, time in times.items()}
    return json.dumps(document, indent=1).encode("utf-8") + b"\n"


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is damaged: {explain_parse_error(error)}.") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{what} is damaged: it is no JSON object.")
    return document


def _time(value: object) -> datetime.datetime | None:
    for form in _FORMS:
        try:
            return datetime.datetime.strptime(str(value), form).replace(tzinfo=datetime.UTC)
        except ValueError:
            continue
    return None
