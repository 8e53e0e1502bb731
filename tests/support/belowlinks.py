"""An image with members below symbolic links of lower layers: the members of its layers, bottom first."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.support.enginelayers import adding

Member = Callable[[tarfile.TarFile], None]


def directory(name: str, mode: int = 0o755) -> Member:
    return adding(name, tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str) -> Member:
    return adding(name, tarfile.SYMTYPE, link=target, mode=0o777)


def program(name: str) -> Member:
    return adding(name, data=Path("/bin/true").read_bytes() * 3, mode=0o755)


_BASE = (
    directory("."), directory("usr", 0o711), directory("usr/lib", 0o751), directory("usr/lib/sub"), directory("opt"),
    directory("opt/real", 0o1777), directory("sec"), directory("emptied"), directory("emptied/old"),
    directory("hidden"), directory("out"),
    adding("usr/lib/old", data=b"old"), adding("usr/lib/gone", data=b"gone"), adding("usr/lib/sub/a", data=b"a"),
    adding("usr/lib/replaced", data=b"before"), adding("emptied/old/x"), adding("emptied/y"), adding("sec/first"),
    adding("hidden/old"),
    link("lib", "usr/lib"), link("usr/lib/linked", "/opt/real"), link("foo", "sec"), link("one", "two"),
    link("two", "/three/../one-more/."), link("one-more", "../../usr/./lib/sub"), link("nowhere", "made/deep"),
    link("outside", "../../../../../../out"), link("void", "emptied"), link("taken", "hidden"), link("both", "usr/lib"),
    link("again", "lib"),
)  # fmt: skip
_ABOVE = (
    adding("lib/new", data=b"new", mode=0o755, uid=7, gid=8), adding("lib/empty"), adding("lib/.wh.gone"),
    adding("lib/replaced", data=b"after"), adding("lib/.wh.never"),
    adding("lib/sub/b", data=b"b"), adding("lib/fresh/deep/c", data=b"c" * 100_000),
    adding("lib/linked/d", data=b"d"), link("lib/link", "new"), adding("lib/fifo", tarfile.FIFOTYPE),
    adding("lib/hard", tarfile.LNKTYPE, link="lib/new"), directory("lib/brought", 0o700), adding("lib/brought/e"),
    directory("lib/sub/own", 0o770), adding("usr/lib/beside", data=b"beside"),
    adding("foo/viasym", data=b"viasym"), adding("one/f", data=b"f"), adding("nowhere/g", data=b"g"),
    adding("outside/h", data=b"h"), adding("void/.wh..wh..opq"), adding("void/z", data=b"z"),
    adding("emptied/beside", data=b"stays"), adding(".wh.taken"), adding("taken/i", data=b"i"),
    adding("again/j", data=b"j"), program("lib/program"),
)  # fmt: skip
_LAST = (
    adding("lib/fresh/k", data=b"k"), adding("lib/.wh.empty"), adding("lib/new", data=b"newest"),
    adding("foo/.wh.first"), directory("both"), adding("both/l", data=b"l"), adding("lib/brought/m"),
)  # fmt: skip


LAYERS: Final = (_BASE, _ABOVE, _LAST)
