"""`docker://debian:12`, `oci:DIR:TAG`, …: from what people write to an opened image.

The command line and the portal call `open_image`; which class answers is nobody's business but this module's.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from mica.errors import UserError
from mica.oci.dockerarchive import open_docker_archive
from mica.oci.dockerdaemon import DOCKER_SOCKET, open_docker_daemon
from mica.oci.image import Image, ImageSource, checked_platform, open_described
from mica.oci.layout import Layout, open_layout, open_layout_archive
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.oci.registry import open_registry
from mica.oci.session import RegistryOptions

_HINT = "Sources: docker://REF  oci:DIR[:TAG]  oci-archive:FILE[:TAG]  docker-archive:FILE[:REF]  docker-daemon:REF"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to reach what is not a file. `spool_path` is a directory with room for an image of the Docker daemon."""

    registry: RegistryOptions = field(default_factory=RegistryOptions)
    docker_socket: Path = DOCKER_SOCKET
    spool_path: Path | None = None


_Opener = Callable[[str, Platform | None, SourceOptions], AbstractContextManager[Image]]


@contextlib.contextmanager
def open_image(source: str, *, platform: str = "", options: SourceOptions | None = None) -> Iterator[ImageSource]:
    """An image for the length of a block.

    No platform means this machine's where there is a choice, and whatever there is where there is none.
    Raises UserError for a source that is none, and what the places raise.
    """
    scheme, _, rest = source.partition(":")
    opener = _OPENERS.get(scheme)
    if opener is None:
        raise UserError(f"{source[:200]!r} does not say where the image is.", hint=_HINT)
    if not rest:
        raise UserError(f"{source!r} names no image.", hint=_HINT)
    with opener(rest, Platform.parse(platform) if platform else None, options or SourceOptions()) as image:
        yield image


@contextlib.contextmanager
def _open_from_registry(rest: str, platform: Platform | None, options: SourceOptions) -> Iterator[Image]:
    if not rest.startswith("//"):
        raise UserError(f"'docker:{rest[:200]}' lacks its two slashes.", hint=_HINT)
    reference = Reference.parse(rest[2:])
    with open_registry(options.registry) as client:
        yield client.image(reference, platform=platform)


@contextlib.contextmanager
def _open_from_layout(rest: str, platform: Platform | None, _: SourceOptions) -> Iterator[Image]:
    path, tag = _split_path(rest)
    with open_layout(path) as layout:
        yield _image_in_layout(layout, tag, platform, name=f"oci:{rest}")


@contextlib.contextmanager
def _open_from_layout_archive(rest: str, platform: Platform | None, _: SourceOptions) -> Iterator[Image]:
    path, tag = _split_path(rest)
    with open_layout_archive(path) as layout:
        yield _image_in_layout(layout, tag, platform, name=f"oci-archive:{rest}")


@contextlib.contextmanager
def _open_from_docker_archive(rest: str, platform: Platform | None, _: SourceOptions) -> Iterator[Image]:
    path, tag = _split_path(rest)
    with open_docker_archive(path, tag=tag) as image:
        yield checked_platform(image, platform)


@contextlib.contextmanager
def _open_from_daemon(rest: str, platform: Platform | None, options: SourceOptions) -> Iterator[Image]:
    with open_docker_daemon(rest, socket_path=options.docker_socket, spool_path=options.spool_path) as image:
        yield checked_platform(image, platform)


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


def _image_in_layout(layout: Layout, tag: str, platform: Platform | None, *, name: str) -> Image:
    return open_described(layout.find(tag), layout, platform=platform, name=name)
