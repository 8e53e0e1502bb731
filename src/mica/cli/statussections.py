"""What `mica status` is made of: sections of things, each made by a provider of its own (`status.py`)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Thing(NamedTuple):
    """One thing as it is shown to people: a title, and lines of a name and a text. A line with an empty text is left
    out."""

    title: str
    lines: Mapping[str, object]


class Section(NamedTuple):
    """All things of one kind for people, and the same for programs: `facts` go below `key` in the JSON, one for each
    thing."""

    key: str
    things: Sequence[Thing]
    facts: Sequence[dict[str, object]]


Provider = Callable[[Path | None], Sequence[Section]]
"""With a directory it makes sections only of what is mounted there, else of everything. It downloads nothing, and waits
for no other process for long."""

NOT_COUNTED = "not counted; --local counts"
