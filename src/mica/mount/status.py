"""The status of a mount, as its magic attribute `user.mica.status` (docs/format/magic-attributes.md).

JSON with exactly the fields below; the reader ignores others, which a newer server may send. Pure.
"""

import json
from typing import Final, NamedTuple

NAME: Final = "user.mica.status"


class MountStatus(NamedTuple):
    """`root_catalog` is a digest, `published_at` in seconds since 1970; `proxy` is empty without one, and
    `passthrough_refusal` if files pass through; `cache` is an absolute path on the server's host; the last five are
    counts since the mount (`fetch/counters.py`)."""

    fqrn: str
    revision: int
    root_catalog: str
    root_catalog_size: int
    published_at: int
    follows: bool
    host: str
    proxy: str
    cache: str
    passthrough_refusal: str
    passthrough_from_bytes: int
    passthrough_open_files: int
    pid: int
    version: str
    uptime_s: int
    requests: int
    transferred_bytes: int
    objects_fetched: int
    files_opened: int
    io_errors: int


def format_status(status: MountStatus) -> str:
    return json.dumps(status._asdict())


def parse_status(data: bytes) -> MountStatus:
    """Raises ValueError if a field is missing or has another type."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("not an object")
    for name, kind in MountStatus.__annotations__.items():
        if type(document.get(name)) is not kind:
            raise ValueError(f"{name} is not {kind.__name__}")
    return MountStatus(**{name: document[name] for name in MountStatus._fields})
