r"""Names and sentences from outside as text for people: one line that can fool neither a terminal nor a log.

What is not printable is written as \xNN, byte by byte. Times are those of UTC. Pure.
"""

import time

_SHOWN_CHARACTERS = 200


def printable(name: bytes) -> str:
    r"""A name. No two names look the same, for a backslash is \x5c; documents hold such names too."""
    return one_line(name.decode("utf-8", "surrogateescape").replace("\\", "\\x5c"))


def printable_path(path: bytes) -> str:
    """A path in a repository or an image; the root's, which is empty, is a slash."""
    return printable(path or b"/")


def quoted(name: bytes) -> str:
    """A name for a sentence: printable, in quotes, cut when it is absurdly long."""
    text = printable(name[: 4 * _SHOWN_CHARACTERS])
    return f"'{text}'" if len(text) <= _SHOWN_CHARACTERS else f"'{text[:_SHOWN_CHARACTERS]}…'"


def quoted_path(path: bytes) -> str:
    return quoted(path or b"/")


def one_line(text: str) -> str:
    """A text, which may have names in it that are printable already: backslashes stay."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def format_time(seconds: int) -> str:
    """A time in seconds since 1970, for people: `2024-05-31 12:00:00Z`."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def _escaped(character: str) -> str:
    try:
        data = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can have it
        return f"\\u{ord(character):04x}"
    return "".join(f"\\x{byte:02x}" for byte in data)
