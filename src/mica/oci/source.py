"""`docker://debian:12`, `oci:DIR:TAG`, …: from what people write to an opened image.

The command line and the portal call `open_image`; which class answers is nobody's business but this module's.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mica.errors import NotFoundError, UserError
from mica.oci.choice import ImageChoice, only_choice
from mica.oci.image import ImageSource, open_described, open_every
from mica.oci.layout import Layout, open_layout, open_layout_archive
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.oci.tagpattern import TagPattern

if TYPE_CHECKING:  # HTTP for a layout on the disk would double the time until a container starts
    from mica.oci.session import RegistryOptions

_REGISTRY_SCHEME = "docker://"
_HINT = "Sources: docker://REF  oci:DIR[:TAG]  oci-archive:FILE[:TAG]  docker-archive:FILE[:REF]  docker-daemon:REF"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to reach what is not a file; None: as usual. `spool_path` is a directory with room for an image of the
    Docker daemon."""

    registry: "RegistryOptions | None" = None
    docker_socket: Path | None = None
    spool_path: Path | None = None


_Opener = Callable[[str, SourceOptions], AbstractContextManager[ImageChoice]]


@contextlib.contextmanager
def open_image(source: str, *, platform: str = "", options: SourceOptions | None = None) -> Iterator[ImageSource]:
    """An image for the length of a block.

    No platform means this machine's where there is a choice, and whatever there is where there is none.
    Raises UserError for a source that is none, and what the places raise.
    """
    wanted = Platform.parse(platform) if platform else None
    with open_choice(source, options=options) as choice:
        yield choice.one(wanted)


@contextlib.contextmanager
def open_choice(source: str, *, options: SourceOptions | None = None) -> Iterator[ImageChoice]:
    """All that a source stands for, for the length of a block."""
    scheme, _, rest = source.partition(":")
    opener = _OPENERS.get(scheme)
    if opener is None:
        raise UserError(f"{source[:200]!r} does not say where the image is.", hint=_HINT)
    if not rest:
        raise UserError(f"{source!r} names no image.", hint=_HINT)
    with opener(rest, options or SourceOptions()) as choice:
        yield choice


def expand_source(source: str, *, options: SourceOptions | None = None) -> list[str]:
    """The sources that a tag with `*`, `?` or `[…]` in it stands for; any other source is itself.

    Raises NotFoundError if there are none.
    """
    if not source.startswith(_REGISTRY_SCHEME):
        return [source]
    found = TagPattern.parse(source.removeprefix(_REGISTRY_SCHEME))
    if found is None:
        return [source]
    from mica.oci.registry import open_registry

    with open_registry((options or SourceOptions()).registry) as client:
        tags = found.matching(client.tags(found.repository))
    if not tags:
        raise NotFoundError(f"{found.repository.name} has no tag that matches {found.pattern!r}.")
    return [f"{_REGISTRY_SCHEME}{found.repository.name}:{tag}" for tag in tags]


@contextlib.contextmanager
def _open_from_registry(rest: str, options: SourceOptions) -> Iterator[ImageChoice]:
    if not rest.startswith("//"):
        raise UserError(f"'docker:{rest[:200]}' lacks its two slashes.", hint=_HINT)
    from mica.oci.registry import open_registry

    reference = Reference.parse(rest[2:])
    with open_registry(options.registry) as client:
        yield client.choice(reference)


@contextlib.contextmanager
def _open_from_layout(rest: str, _: SourceOptions) -> Iterator[ImageChoice]:
    path, tag = _split_path(rest)
    with open_layout(path) as layout:
        yield _choice_in_layout(layout, tag, name=f"oci:{rest}")


@contextlib.contextmanager
def _open_from_layout_archive(rest: str, _: SourceOptions) -> Iterator[ImageChoice]:
    path, tag = _split_path(rest)
    with open_layout_archive(path) as layout:
        yield _choice_in_layout(layout, tag, name=f"oci-archive:{rest}")


@contextlib.contextmanager
def _open_from_docker_archive(rest: str, _: SourceOptions) -> Iterator[ImageChoice]:
    from mica.oci.dockerarchive import open_docker_archive

    path, tag = _split_path(rest)
    with open_docker_archive(path, tag=tag) as image:
        yield only_choice(image)


@contextlib.contextmanager
def _open_from_daemon(rest: str, options: SourceOptions) -> Iterator[ImageChoice]:
    from mica.oci.dockerdaemon import DOCKER_SOCKET, open_docker_daemon

    socket_path = options.docker_socket or DOCKER_SOCKET
    with open_docker_daemon(rest, socket_path=socket_path, spool_path=options.spool_path) as image:
        yield only_choice(image)


_OPENERS: dict[str, _Opener] = {
    "docker": _open_from_registry,
    "oci": _open_from_layout,
    "oci-archive": _open_from_layout_archive,
    "docker-archive": _open_from_docker_archive,
    "docker-daemon": _open_from_daemon,
}


def _split_path(text: str) -> tuple[Path, str]:
    """File and tag at the first colon, unless a file has the colon in its name."""
    path, _, tag = text.partition(":")
    if not Path(path).exists() and Path(text).exists():
        return Path(text), ""
    return Path(path), tag


def _choice_in_layout(layout: Layout, tag: str, *, name: str) -> ImageChoice:
    descriptors = layout.find(tag)
    return ImageChoice(
        descriptors[0].digest if len(descriptors) == 1 else "",
        lambda platform: open_described(descriptors, layout, platform=platform, name=name),
        lambda: open_every(descriptors, layout, name=name),
    )
