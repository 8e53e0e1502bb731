"""Every way in which a node can mount an image, as the suites of `tests/contracts` see it.

To have a new way judged by all of them, write a class like the two below and add it to `PATHS`. The suites know of a
way its name, its `Traits` and `open`, and nothing else.

What is below `place`, a directory for one scratch layer, is the path's own business but for two things: nothing is
mounted or running when the block has ended, and the next `open` with the same place finds what programs wrote. The
server, if there is one, is a process of its own: the suites hold the interpreter's lock while they fault pages in.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.support.publishedimages import PublishedImage

from mica import linux
from mica.cli.layers import mounted_layers
from mica.cli.places import Places
from mica.mount.overlay import open_overlay, plan_overlay

Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Deviation:
    """Where a path is known not to behave as plain overlayfs does, and why.

    rows: regular expression for lines of the POSIX table.
    aspect: `identity`: which names are the same file; or `everything`.
    """

    rows: str
    aspect: str
    why: str


@dataclass(frozen=True, slots=True)
class Traits:
    """What the suites expect of a path.

    overlay: the options of overlayfs that programs can tell; plain overlayfs with the same ones is the judge.
    is_lazy: content is fetched from the repository when it is asked for, so objects can be missing.
    """

    overlay: Options
    is_lazy: bool
    deviations: tuple[Deviation, ...] = ()

    @property
    def moves_directories(self) -> bool:
        """Whether a directory that lower layers have can be renamed; without redirects it is EXDEV."""
        return ("redirect_dir", "on") in self.overlay


CLASSIC: Final[Options] = (("redirect_dir", "nofollow"), ("metacopy", "off"))
METACOPY: Final[Options] = (("redirect_dir", "on"), ("metacopy", "on"))
"""What data-only lower layers need; a changed mode or owner copies a file's attributes up without its content."""


class MountPath(Protocol):
    """A way to mount."""

    @property
    def name(self) -> str: ...

    @property
    def traits(self) -> Traits: ...

    def open(
        self, image: PublishedImage, place: Path, *, cache: Path, writable: bool = True
    ) -> AbstractContextManager[Path]:
        """The union of an image's layers, mounted somewhere below `place`.

        cache: directory for what is fetched; it need not exist, and an empty one means that all is fetched anew.
        """


@dataclass(frozen=True, slots=True)
class PlainOverlay:
    """Overlayfs over the layer directories from which the image was made: no code of ours."""

    overlay: Options = CLASSIC

    @property
    def name(self) -> str:
        return "plain" if self.overlay == CLASSIC else "plain-metacopy"

    @property
    def traits(self) -> Traits:
        return Traits(self.overlay, is_lazy=False)

    @contextlib.contextmanager
    def open(self, image: PublishedImage, place: Path, *, cache: Path, writable: bool = True) -> Iterator[Path]:
        layers = image.unpacked[::-1]
        target, upper, work = _make_places(place, layers)
        options = {"lowerdir": ":".join(map(os.fspath, layers)), **dict(self.overlay), "index": "off", "xino": "off"}
        if writable:
            options |= {"upperdir": os.fspath(upper), "workdir": os.fspath(work)}
        elif options["redirect_dir"] == "on":
            options["redirect_dir"] = "follow"
        data = ",".join(f"{key}={value}" for key, value in options.items())
        linux.mount("overlay", target, "overlay", flags=0 if writable else linux.MS_RDONLY, data=data)
        try:
            yield target
        finally:
            linux.umount2(target, linux.MNT_DETACH)


_NO_UUID: Final = (
    "A FUSE file system has no UUID, so overlayfs does not find the origin of a file that it copied up and takes a new "
    "name of it for another file."
)
FUSE_DEVIATIONS: Final = (
    Deviation(r"\blink(follow)? ", "identity", _NO_UUID),
    Deviation(r"^link f new; rename new f; stat new$", "everything", f"{_NO_UUID} Rename is ESTALE then."),
)


@dataclass(frozen=True, slots=True)
class RepositoryTrees:
    """The repository as one tree by FUSE and overlayfs over the layer trees in it: what `mica run` does."""

    name: str = "trees"
    traits: Traits = Traits(CLASSIC, is_lazy=True, deviations=FUSE_DEVIATIONS)

    @contextlib.contextmanager
    def open(self, image: PublishedImage, place: Path, *, cache: Path, writable: bool = True) -> Iterator[Path]:
        location = image.location
        places = Places(
            place / "state", urls=list(location.urls), keys=list(location.keys), proxies=location.proxies, cache=cache
        )
        with mounted_layers(image.descriptor, places, place / "repositories", {}) as layers:
            target, upper, work = _make_places(place, layers)
            plan = plan_overlay(layers, upper if writable else None, work if writable else None, target)
            with open_overlay(plan):
                yield target


def _make_places(place: Path, layers: tuple[Path, ...]) -> tuple[Path, Path, Path]:
    """Mount point, upper and work directory; the root directory has the owner and mode of the topmost layer's."""
    target, upper, work = (place / name for name in ("root", "upper", "work"))
    for path in (target, upper, work):
        path.mkdir(parents=True, exist_ok=True)
    top = layers[0].stat()
    os.chown(upper, top.st_uid, top.st_gid)
    upper.chmod(stat.S_IMODE(top.st_mode))
    return target, upper, work


PATHS: Final[tuple[MountPath, ...]] = (PlainOverlay(), RepositoryTrees())
