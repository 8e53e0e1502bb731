"""Every way in which a node can mount an image, as the suites of `tests/contracts` see it.

To have a new way judged by all of them, write a class like those below and add it to `PATHS`. The suites know of a
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

from tests.support.cli import mica
from tests.support.publishedimages import PublishedImage
from tests.support.tools import missing

from mica import linux
from mica.cli.places import Places
from mica.cli.providerchoice import choose_provider
from mica.layers.stack import Method
from mica.union.overlay import open_overlay, plan_overlay

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

        cache: directory for what is fetched; it need not exist, and an empty one means that all is fetched.
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
    """The repository as one tree by FUSE and overlayfs over the layer trees in it."""

    name: str = "repository"
    traits: Traits = Traits(CLASSIC, is_lazy=True, deviations=FUSE_DEVIATIONS)

    @contextlib.contextmanager
    def open(self, image: PublishedImage, place: Path, *, cache: Path, writable: bool = True) -> Iterator[Path]:
        with _opened(Method.REPOSITORY, image, place, cache=cache, writable=writable) as target:
            yield target


@dataclass(frozen=True, slots=True)
class ExternalTrees:
    """The same with the mount of another client: here one of ours, which knows nothing of who uses it."""

    name: str = "external"
    traits: Traits = Traits(CLASSIC, is_lazy=True, deviations=FUSE_DEVIATIONS)

    @contextlib.contextmanager
    def open(self, image: PublishedImage, place: Path, *, cache: Path, writable: bool = True) -> Iterator[Path]:
        external = place / "cvmfs"
        config = place / "config.toml"
        with _opened_repositories(image, external, cache):
            config.write_text(f"[node]\nexternal = '{external}'\n")
            with _opened(Method.EXTERNAL, image, place, cache=cache, writable=writable, config=config) as target:
                yield target


_NO_SET_ACL: Final = (
    "Overlayfs asks for set_acl of the file's own file system before it copies up (ovl_set_acl); EROFS has none: an "
    "access list can be set only once the file has been copied up for another reason."
)
IMAGE_DEVIATIONS: Final = (Deviation(r"\bsetacl |^removexattr acl ", "everything", _NO_SET_ACL),)


@dataclass(frozen=True, slots=True)
class MetadataImages:
    """Metadata images, with content from data-only layers or from the object filesystem: what a node does."""

    method: Method
    traits: Traits = Traits(METACOPY, is_lazy=True, deviations=IMAGE_DEVIATIONS)

    @property
    def name(self) -> str:
        return self.method.value

    @contextlib.contextmanager
    def open(self, image: PublishedImage, place: Path, *, cache: Path, writable: bool = True) -> Iterator[Path]:
        with _opened(self.method, image, place, cache=cache, writable=writable) as target:
            yield target


@contextlib.contextmanager
def _opened(
    method: Method, image: PublishedImage, place: Path, *, cache: Path, writable: bool, config: Path | None = None
) -> Iterator[Path]:
    location = image.location
    places = Places(
        place / "state", config=config, urls=list(location.urls), keys=list(location.keys), proxies=location.proxies,
        cache=cache,
    )  # fmt: skip
    if method.uses_images and (reason := places.kernel_facts().reason_against(method)):
        missing(f"method {method}: {reason}")
    provider = choose_provider(image.descriptor, places, place / "layers", method)
    with provider.layers(image.descriptor) as layers:
        target, upper, work = _make_places(place, layers.lower)
        scratch = (upper, work) if writable else (None, None)
        plan = plan_overlay(layers.lower, *scratch, target, layers.options())
        with open_overlay(plan):
            yield target


@contextlib.contextmanager
def _opened_repositories(image: PublishedImage, external: Path, cache: Path) -> Iterator[None]:
    target = external / image.location.fqrn
    target.mkdir(parents=True, exist_ok=True)
    command = ["mount", image.location.fqrn, target, "--cache", cache]
    for url in image.location.urls:
        command += ["--url", url]
    for key in image.location.keys:
        command += ["--key", key]
    done = mica(external.parent / "client", *command)
    assert done.code == 0, done.stderr
    try:
        yield
    finally:
        linux.umount2(target, linux.MNT_DETACH)


def _make_places(place: Path, layers: tuple[Path, ...]) -> tuple[Path, Path, Path]:
    """Mount point, upper and work directory; the root directory has the owner and mode of the topmost layer's."""
    target, upper, work = (place / name for name in ("root", "upper", "work"))
    for path in (target, upper, work):
        path.mkdir(parents=True, exist_ok=True)
    top = layers[0].stat()
    os.chown(upper, top.st_uid, top.st_gid)
    upper.chmod(stat.S_IMODE(top.st_mode))
    return target, upper, work


PATHS: Final[tuple[MountPath, ...]] = (
    PlainOverlay(),
    RepositoryTrees(),
    ExternalTrees(),
    MetadataImages(Method.KERNEL),
    MetadataImages(Method.LOOP),
    MetadataImages(Method.ORDINARY_LOOP),
)
