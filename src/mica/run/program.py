"""Which content of an image holds the program to start: looked up when the union is mounted, before it starts.

The tree comes from a hostile image and does not change meanwhile; the kernel keeps every link inside (openat2(2)).
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from mica import linux
from mica.errors import UserError
from mica.files import owned_fd
from mica.repo.localname import LocalName
from mica.run.request import PATH, Process
from mica.unionsigns import REDIRECT


def program_content(rootfs: Path, process: Process, lower: Sequence[Path]) -> LocalName:
    """`lower`: the mounted layers, top first. Raises UserError for a program whose file is not in them."""
    for path in _candidates(process):
        relative = _resolved(rootfs, path)
        if relative is not None:
            for layer in lower:
                with contextlib.suppress(OSError, ValueError):
                    redirect = os.getxattr(layer / relative, REDIRECT, follow_symlinks=False)
                    return LocalName.parse_redirect(redirect)
    raise UserError(
        f"{process.args[0]} cannot be traced: it is not a file of one of the image's layers.",
        hint="To trace a script, give its interpreter as the command.",
    )


def _candidates(process: Process) -> Iterator[str]:
    """The paths that execvpe(3) tries."""
    name = process.args[0]
    if "/" in name:
        yield os.path.join(process.cwd, name)
        return
    path = next((item[5:] for item in process.env if item.startswith("PATH=")), PATH)
    for directory in path.split(":"):
        yield os.path.join(process.cwd, directory, name)


def _resolved(rootfs: Path, path: str) -> Path | None:
    """The regular file that a path leads to, relative to the root; None if there is none."""
    try:
        with (
            owned_fd(os.open(rootfs, os.O_PATH | os.O_CLOEXEC)) as root,
            owned_fd(linux.openat2(root, path, os.O_PATH, resolve=linux.RESOLVE_IN_ROOT)) as fd,
        ):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return Path(os.readlink(f"/proc/self/fd/{fd}")).relative_to(os.readlink(f"/proc/self/fd/{root}"))
    except (OSError, ValueError):
        return None
