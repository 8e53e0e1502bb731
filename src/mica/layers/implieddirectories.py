"""The implied directories of a layer, as its layer facts list them. Pure."""

import json
import re

from mica.errors import IntegrityError
from mica.metaimage.inode import PATH_MAX

FACTS_MAX_BYTES = 16 << 20
"""The largest document that is read for this."""
DIRECTORIES_MAX = 1000
"""The most that layer facts list."""
_WITH_NEW = {1, 2, 3}
"""Versions of facts that also list a directory as implied if the archive removes its name from lower layers: then it
is opaque. They do not tell whether it is opaque for another reason."""
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_BAD_PARTS = {b"", b".", b".."}


def parse_implied(data: bytes, what: str) -> tuple[bytes, ...]:
    """Paths of a layer tree, `/` for its root. Raises IntegrityError for data that is not layer facts; an entry that is
    not a path is left out."""
    try:
        facts = json.loads(data)
        items = facts["implied_directories"]["items"]
        new = facts["opaque"]["items"] if facts.get("format_version") in _WITH_NEW else []
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{what} does not tell which directories are implied.") from error
    if not isinstance(items, list) or not isinstance(new, list):
        raise IntegrityError(f"{what} does not list the implied directories.")
    texts = [item for item in items[:DIRECTORIES_MAX] if isinstance(item, str) and (item == "/" or item not in new)]
    return tuple(dict.fromkeys(path for path in map(_path, texts) if path))


def _path(text: str) -> bytes:
    """The path of a text that `printable` made; empty if the text is not a path."""
    name = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text.encode("utf-8", "replace"))
    if name == b"/":
        return name
    is_path = name.startswith(b"/") and len(name) <= PATH_MAX and b"\0" not in name
    return name if is_path and _BAD_PARTS.isdisjoint(name[1:].split(b"/")) else b""
