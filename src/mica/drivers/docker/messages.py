"""Requests and replies of the graph driver protocol, as values. Pure.

Requests are JSON objects in which empty fields are left out; replies too, and a reply with "Err" is a failure.
Source: moby, daemon/graphdriver/proxy.go and plugin.go; measured on 20.10 and 26.1.
"""

import json
from typing import Any

from mica.engine.diff import Change
from mica.errors import UserError
from mica.texts import printable

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
REQUEST_MAX_BYTES = 1 << 20


def parse_request(data: bytes) -> dict[str, Any]:
    """Raises UserError for anything but an object."""
    if not data.strip():
        # After a lost connection the engine sends a request again, without its body, which it has sent already.
        raise UserError("The request is empty, as it is when it is repeated after a lost connection.")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError("The request is not JSON.") from error
    if not isinstance(values, dict):
        raise UserError("The request is not a JSON object.")
    return values


def text_of(values: dict[str, Any], name: str) -> str:
    """A field that may be left out. Raises UserError if it is not a text."""
    value = values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{name} of the request is not a text.")
    return value


def texts_of(values: dict[str, Any], name: str) -> list[str]:
    value = values.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UserError(f"{name} of the request is not a list of texts.")
    return value


def format_reply(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode("ascii")


def format_changes(changes: list[Change]) -> list[dict[str, Any]]:
    return [{"Path": f"/{_text(change.path)}", "Kind": int(change.kind)} for change in changes]


def _text(path: bytes) -> str:
    try:
        return path.decode("utf-8")
    except UnicodeDecodeError:
        return printable(path)
