"""`docker://debian:12`, `oci:DIR:TAG`, …: from a source as people write it to an opened image.

The command line and the portal call `open_image`; only this module knows the classes behind it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mica.errors import NotFoundError, UserError
from mica.oci.image import ImageChoice, ImageSource, only_choice, open_described, open_every
from mica.oci.layout import Layout, open_layout, open_layout_archive
from mica.oci.platforms import Platform
from mica.oci.reference import Reference, TagPattern

if TYPE_CHECKING:  # imported late: HTTP would double the start time of a container whose layout is on the disk
    from mica.oci.registry import RegistryClient
    from mica.oci.session import RegistryOptions

_REGISTRY_SCHEME = "docker://"
FOREIGN_SCHEMES = frozenset({"containers-storage", "dir", "ostree", "sif", "tarball"})
"""Other sources of skopeo and podman (containers-transports(5)); none is a name in Docker's registry."""
_HINT = (
    "Sources: NAME  docker://REF  oci:DIR[:TAG]  oci-archive:FILE[:TAG]  docker-archive:FILE[:REF]  docker-daemon:REF"
)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to reach sources that are no files; None: as usual. `spool_path` is a directory with room for an image of the
    Docker daemon."""

    registry: "RegistryOptions | None" = None
    docker_socket: Path | None = None
    spool_path: Path | None = None


_Opener = Callable[[str, SourceOptions], AbstractContextManager[ImageChoice]]


@contextlib.contextmanager
def open_image(source: str, *, platform: str = "", options: SourceOptions | None = None) -> Iterator[ImageSource]:
    """An image for the length of a block.

    Without a platform it is this machine's image if there is a choice, and otherwise the only image.
    Raises UserError for a malformed source, and the errors of the places.
    """
    wanted = Platform.parse(platform) if platform else None
    with open_choice(source, options=options) as choice:
        yield choice.one(wanted)


@contextlib.contextmanager
def open_choice(source: str, *, options: SourceOptions | None = None) -> Iterator[ImageChoice]:
    """All images that a source stands for, for the length of a block."""
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

    A name without a scheme is in a registry; `registries.conf` completes a short one. Raises NotFoundError if no tag
    matches.
    """
    scheme = scheme_of(source)
    if scheme in FOREIGN_SCHEMES:
        raise UserError(f"{source[:200]!r} is a source that mica does not read.", hint=_HINT)
    is_name = not scheme and "://" not in source and not os.path.exists(source)
    if not is_name and not source.startswith(_REGISTRY_SCHEME):
        return [source]
    from mica.oci.registry import open_registry

    registry = (options or SourceOptions()).registry
    with open_registry(registry) as client:
        name = source.removeprefix(_REGISTRY_SCHEME)
        if is_name:
            names = client.session.options.find_names(name)
            if not names:
                return [source]
            name = next((one for one in names[:-1] if _is_there(client, one)), names[-1])
        found = TagPattern.parse(name)
        if found is None:
            return [f"{_REGISTRY_SCHEME}{name}"]
        tags = found.matching(client.tags(found.repository))
    if not tags:
        raise NotFoundError(f"{found.repository.name} has no tag that matches {found.pattern!r}.")
    return [f"{_REGISTRY_SCHEME}{found.repository.name}:{tag}" for tag in tags]


def _is_there(client: "RegistryClient", name: str) -> bool:
    """Whether a registry has an image. If it does not answer, another registry's image must not replace it."""
    try:
        found = TagPattern.parse(name)
        if found is None:
            return bool(client.digest_of(Reference.parse(name)))
        return bool(found.matching(client.tags(found.repository)))
    except UserError:
        return False


@contextlib.contextmanager
def _open_from_registry(rest: str, options: SourceOptions) -> Iterator[ImageChoice]:
    if not rest.startswith("//"):
        raise UserError(f"'docker:{rest[:200]}' lacks the two slashes after 'docker:'.", hint=_HINT)
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
SCHEMES = frozenset(_OPENERS)
"""The first parts of the sources that mica reads."""


def scheme_of(text: str) -> str:
    """The first part of a source of `SCHEMES` or `FOREIGN_SCHEMES`; empty for a text that is no such source."""
    scheme, colon, _ = text.partition(":")
    return scheme if colon and scheme in SCHEMES | FOREIGN_SCHEMES else ""


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
