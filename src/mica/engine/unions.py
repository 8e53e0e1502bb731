"""Unions of layers as engines mount them: overlayfs, or AUFS where a kernel has it and is told to use it.

Any thread; a mount appears in the mount namespace of the calling thread.
"""

import enum
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mica import linux
from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.errors import UserError
from mica.files import mapped_os_errors
from mica.mount.overlay import OverlayOptions, plan_overlay
from mica.node.stack import LayerStack

_PAGE_BYTES = 4096
_FILESYSTEMS = Path("/proc/filesystems")


class UnionKind(enum.StrEnum):
    OVERLAY = "overlay"
    AUFS = "aufs"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a union is made: without `upper` and `work` it is read-only. `label`: SELinux's, empty for none."""

    target: Path
    upper: Path | None = None
    work: Path | None = None
    label: str = ""


class Union(Protocol):
    """A kind of union and the signs that its layers use."""

    kind: UnionKind
    whiteouts: Whiteouts

    def mount(self, layers: LayerStack, place: Place) -> None:
        """Mount at the target, which exists. Raises UserError with the kernel's own words."""


class OverlayUnion:
    """Ordinary layers get a union without metacopy and redirects, so that its upper directory is what every engine's
    would be: whole files. Stubs need both."""

    kind = UnionKind.OVERLAY
    whiteouts: Whiteouts = OverlayWhiteouts()

    def mount(self, layers: LayerStack, place: Place) -> None:
        options = OverlayOptions(layers.data, has_stubs=layers.has_stubs)
        plan = plan_overlay(layers.lower, place.upper, place.work, place.target, options)
        if place.label:
            plan = replace(plan, options=(*plan.options, ("context", place.label)))
        plan.mount()


class AufsUnion:
    """One branch for each layer, the writable one first (aufs.5). Layers with stubs are not for AUFS."""

    kind = UnionKind.AUFS
    whiteouts: Whiteouts = AufsWhiteouts()

    def mount(self, layers: LayerStack, place: Place) -> None:
        if layers.has_stubs:
            raise UserError(
                "AUFS cannot join layers of the node, whose files have their content elsewhere.",
                hint="Use overlayfs, or the mount method external.",
            )
        options, *more = format_branches(layers.lower, place)
        with mapped_os_errors(f"mount a union of {len(layers.lower)} layers"):
            linux.mount("none", place.target, "aufs", data=options)
            for branches in more:
                linux.mount("none", place.target, "aufs", flags=linux.MS_REMOUNT, data=branches)


def format_branches(lower: Sequence[Path], place: Place) -> list[bytes]:
    """The option strings of a mount and of the remounts that add what does not fit into one page.

    Raises UserError for a path that AUFS has no way to say.
    """
    first = [] if place.upper is None else [_branch(place.upper, b"rw")]
    branches = [*first, *(_branch(path, b"ro+wh") for path in lower)]
    # dio: direct I/O, for databases. xino beside the upper layer's file system would be found by the container.
    strings = [b"dio,xino=/dev/shm/aufs.xino,br:" + branches[0]]
    for branch in branches[1:]:
        if len(strings) == 1 and len(strings[0]) + 1 + len(branch) < _PAGE_BYTES:
            strings[0] += b":" + branch
        elif len(strings) > 1 and len(strings[-1]) + 8 + len(branch) < _PAGE_BYTES:
            strings[-1] += b",append:" + branch
        else:
            strings.append(b"append:" + branch)
    return strings


def _branch(path: Path, rights: bytes) -> bytes:
    text = os.fsencode(path)
    if any(sign in text for sign in b":,="):
        raise UserError(f"AUFS cannot take a layer at {path}: there is one of ':', ',' and '=' in the path.")
    return text + b"=" + rights


def choose_union(wanted: UnionKind | None, known: str | None = None) -> Union:
    """The union that is asked for, else overlayfs, else AUFS. `known` is the text of /proc/filesystems.

    Raises UserError if the kernel has not what is asked for, or neither.
    """
    text = _FILESYSTEMS.read_text("ascii") if known is None else known
    present = {line.split()[-1] for line in text.splitlines() if line.split()}
    if wanted is not None and wanted not in present:
        raise UserError(f"This kernel has no {wanted}.", hint=f"Load the module, or do not ask for {wanted}.")
    if wanted is UnionKind.AUFS or (wanted is None and UnionKind.OVERLAY not in present and UnionKind.AUFS in present):
        return AufsUnion()
    if UnionKind.OVERLAY not in present:
        raise UserError("This kernel has neither overlayfs nor AUFS.", hint="Load a module: modprobe overlay")
    return OverlayUnion()
