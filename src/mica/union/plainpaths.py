"""Directories that are reached without following a link, for paths whose maker is not trusted. Any thread.

A repository may hold any link, and may change between a look and a mount. A link that is followed could make any
directory of the host a layer. So each directory on the way is opened in turn, and the code that mounts gets the open
directory instead of a name, which could lead elsewhere by then.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_plainly(base: Path, names: Sequence[str]) -> int:
    """A descriptor of the directory. `base` itself is trusted: the host's links on the way to it are followed.

    Raises OSError: ENOTDIR for anything on the way that is not a directory, links included.
    """
    fd = os.open(base, _DIRECTORY)
    for name in names:
        try:
            inner = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def pinned(layers: Sequence[Path], untrusted: Path | None, stack: contextlib.ExitStack) -> tuple[Path, ...]:
    """The layers. Those in repositories below `untrusted` become names of directories that stay open until the stack
    closes. Raises OSError if one has a link on its way."""
    found = []
    for layer in layers:
        if untrusted is not None and layer.is_relative_to(untrusted):
            fqrn, *names = layer.relative_to(untrusted).parts
            fd = open_plainly(untrusted / fqrn, names)
            stack.callback(os.close, fd)
            found.append(Path(f"/proc/self/fd/{fd}"))
        else:
            found.append(layer)
    return tuple(found)
