"""Unions of layers as engines mount them: overlayfs, or AUFS where a kernel has it and is told to use it.

Any thread; a mount appears in the mount namespace of the calling thread.
"""

import contextlib
import enum
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mica import linux
from mica.engine.aufs import MountCall, plan_aufs
from mica.engine.aufslinks import bring_up_names, forget_pseudo_links
from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.errors import UserError
from mica.files import mapped_os_errors
from mica.layers.stack import LayerStack
from mica.union.overlay import plan_overlay
from mica.union.plainpaths import pinned

_FILESYSTEMS = Path("/proc/filesystems")
# In memory, as other engines have it: AUFS writes to it whenever a file is looked up for the first time.
_XINO_DIRECTORY = Path("/dev/shm")  # noqa: S108 - the name is random, and AUFS makes it with O_EXCL


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

    def settle(self, target: Path, upper: Path) -> None:
        """Write to the upper directory what the union would forget when it is unmounted. Raises OSError."""


class OverlayUnion:
    """Ordinary layers get a union without metacopy and redirects, so that its upper directory has whole files, as with
    every engine. Stubs need both."""

    kind = UnionKind.OVERLAY
    whiteouts: Whiteouts = OverlayWhiteouts()

    def mount(self, layers: LayerStack, place: Place) -> None:
        plan = plan_overlay(layers.lower, place.upper, place.work, place.target, layers.options())
        if place.label:
            plan = replace(plan, options=(*plan.options, ("context", place.label)))
        plan.mount()

    def settle(self, target: Path, upper: Path) -> None:
        """Nothing to do: the upper directory has everything at all times."""


class AufsUnion:
    """One branch for each layer, the writable one first. Layers with stubs are not for AUFS."""

    kind = UnionKind.AUFS
    whiteouts: Whiteouts = AufsWhiteouts()

    def __init__(self, call: MountCall = linux.mount, bring_up: Callable[[Path, Path], None] = bring_up_names) -> None:
        self._call = call
        self._bring_up = bring_up

    def mount(self, layers: LayerStack, place: Place) -> None:
        if layers.has_stubs:
            raise UserError(
                "AUFS cannot join layers of the node, whose files have their content elsewhere.",
                hint="Use overlayfs, or the mount method external.",
            )
        # Beside the layers, containers would see it. Two unions must not share one name, not even for a moment.
        xino = _XINO_DIRECTORY / f"aufs.xino.{secrets.token_hex(8)}"
        with contextlib.ExitStack() as stack:
            with mapped_os_errors(f"mount a union of {len(layers.lower)} layers"):
                lower = pinned(layers.lower, layers.untrusted, stack)
                if place.upper is not None:
                    forget_pseudo_links(place.upper)
            plan_aufs(lower, place.upper, place.target, xino=xino, label=place.label).mount(self._call)

    def settle(self, target: Path, upper: Path) -> None:
        """Brings up the names of one file (`aufslinks.py`)."""
        self._bring_up(target, upper)


def choose_union(wanted: UnionKind | None, known: str | None = None) -> Union:
    """The union that is asked for, else overlayfs, else AUFS. `known` is the text of /proc/filesystems.

    Raises UserError if the kernel does not have the wanted one, or has neither.
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
