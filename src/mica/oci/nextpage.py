"""Pages of a list: the `Link` header (RFC 8288) of an answer gives the address of the next page. Pure; any thread.

Registries put cursors of their own into the address, so it is used as it is. Only the server is that of the first page,
because registries behind a proxy name themselves wrongly.
"""

import re
from urllib.parse import urljoin, urlsplit, urlunsplit

from mica.errors import UserError

_PARAMETER = r"""\s*;\s*(?P<name>[^\s;,="]+)(?:\s*=\s*(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s;,"]*)))?"""
_PARAMETERS = re.compile(_PARAMETER)
_LINK = re.compile(rf"\s*<(?P<target>[^>]*)>(?P<parameters>(?:{re.sub(r'[?]P<[a-z]+>', '?:', _PARAMETER)})*)\s*")


def next_page(header: str, address: str) -> str:
    """The address of the page after the one at `address`; empty after the last. Raises UserError for a malformed
    header."""
    position = 0
    while position < len(header):
        link = _LINK.match(header, position)
        if link is None or header[link.end() : link.end() + 1] not in {"", ","}:
            raise UserError(f"{header[:200]!r} is not a Link header with a list's next page.")
        if "next" in _relations(link["parameters"]):
            return _on_the_same_server(link["target"], address)
        position = link.end() + 1
    return ""


def _relations(parameters: str) -> list[str]:
    for one in _PARAMETERS.finditer(parameters):
        if one["name"].lower() == "rel":
            return (one["quoted"] or one["plain"] or "").lower().split()
    return []


def _on_the_same_server(target: str, address: str) -> str:
    here = urlsplit(address)
    try:
        there = urlsplit(urljoin(address, target))
    except ValueError as error:
        raise UserError(f"{target[:200]!r} is not the address of a list's next page.") from error
    return urlunsplit((here.scheme, here.netloc, there.path, there.query, ""))
