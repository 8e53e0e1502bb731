"""One AUFS mount: which branches and options, and the steps in which the kernel can take them.

It does not decide what a layer is; `unions.py` calls it. The rules come from the source of AUFS for Linux 6.1 (fs/aufs
of github.com/sfjro/aufs-standalone). Any thread; a mount appears in the mount namespace of the calling thread.

- Options are kept in one page (fsctx.c, `aufs_fsctx_init`), which holds about 84; each branch is one. AUFS refuses a
  longer list only after it has written past the page, and the kernel crashes. So branches come in portions.
- A remount that adds a branch twice ignores the second; a mount refuses it (branch.c, `test_add`).
- A kernel is built for 127, 511, 1023 or 32767 branches and answers ENOSPC to one more, after it has added the rest.
"""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from mica import linux
from mica.errors import UserError
from mica.files import explained_os_error

PORTION_MAX: Final = 40
_PAGE_BYTES: Final = 4096
_REFUSED: Final = "Use overlayfs, or an image with fewer layers."


class MountCall(Protocol):
    """`linux.mount`, or a test's replacement for it."""

    def __call__(self, source: str, target: Path, fstype: str, *, flags: int, data: bytes) -> None: ...


class AufsStep(NamedTuple):
    """One call of mount(2)."""

    flags: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AufsPlan:
    """A union that can be shown and mounted. `branches`: how many there are."""

    target: Path
    steps: tuple[AufsStep, ...]
    branches: int

    def mount(self, call: MountCall = linux.mount, *, unmount: Callable[[Path], None] | None = None) -> None:
        """Mount at the target, which exists, wholly or not at all. Raises UserError with the kernel's own words."""
        done = 0
        try:
            for step in self.steps:
                call("none", self.target, "aufs", flags=step.flags, data=step.data)
                done += 1
        except OSError as error:
            if done:
                # The mount has only some of the layers, and could be mistaken for the union.
                (unmount or _detach)(self.target)
            raise _explained(error, self.branches) from error


def plan_aufs(lower: Sequence[Path], upper: Path | None, target: Path, *, xino: Path, label: str = "") -> AufsPlan:
    """Plan a union of layers, top first; without `upper` it is read-only. `xino` is the path where AUFS makes a file
    for inode numbers and removes its name at once: it must not exist, and not be inside a branch. `label`: SELinux's.

    Raises UserError for a path that AUFS cannot express, and if there is no layer.
    """
    # Of a layer that is there twice only the topmost is kept: AUFS refuses the other, which would change nothing.
    layers = [path for path in dict.fromkeys(lower) if path != upper]
    branches = [*([] if upper is None else [_branch(upper, b"rw")]), *(_branch(path, b"ro+wh") for path in layers)]
    if not branches:
        raise UserError("A union needs at least one layer.")
    flags = linux.MS_RDONLY if upper is None else 0
    context = b',context="' + os.fsencode(label) + b'"' if label else b""
    common = b",".join(_options(xino))
    strings = _portions(branches, common + b",br:", len(context))
    first = AufsStep(flags, common + b",br:" + b":".join(strings[0]) + context)
    more = (
        AufsStep(flags | linux.MS_REMOUNT, b",".join(b"append:" + branch for branch in portion) + context)
        for portion in strings[1:]
    )
    return AufsPlan(target, (first, *more), len(branches))


def _options(xino: Path) -> list[bytes]:
    return [
        # Direct I/O, for databases.
        b"dio",
        # Only the permissions of the topmost directory count (aufs.5). Without this option those of all layers count,
        # and a directory that a lower layer closed stays closed.
        b"dirperm1",
        b"xino=" + _plain(xino),
    ]


def _portions(branches: Sequence[bytes], opening: bytes, reserved: int) -> list[list[bytes]]:
    """Branches for each call, limited in number and in bytes."""
    portions: list[list[bytes]] = [[]]
    used = len(opening) + reserved
    for branch in branches:
        needed = len(b",append:") + len(branch)
        if portions[-1] and (len(portions[-1]) == PORTION_MAX or used + needed >= _PAGE_BYTES):
            portions.append([])
            used = reserved
        portions[-1].append(branch)
        used += needed
    return portions


def _branch(path: Path, rights: bytes) -> bytes:
    return _plain(path) + b"=" + rights


def _plain(path: Path) -> bytes:
    text = os.fsencode(path)
    if any(sign in text for sign in b":,="):
        raise UserError(f"AUFS cannot take the path {path}: there is one of ':', ',' and '=' in it.")
    return text


def _explained(error: OSError, branches: int) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(f"The AUFS of this kernel cannot join {branches} directories.", hint=_REFUSED)
    explained = explained_os_error(error, f"mount a union of {branches} directories by AUFS")
    # AUFS answers EINVAL to most errors and writes the cause to the kernel's log.
    return UserError(str(explained), hint="dmesg tells more.") if error.errno == errno.EINVAL else explained


def _detach(target: Path) -> None:
    linux.umount2(target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
