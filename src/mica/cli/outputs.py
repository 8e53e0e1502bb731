"""Where thin images go: a layout, an archive, a registry."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mica.errors import UserError
from mica.oci.layoutwriter import LayoutWriter, open_layout_archive_writer
from mica.oci.push import RegistryWriter
from mica.oci.reference import Reference
from mica.oci.registry import open_registry
from mica.oci.session import RegistryOptions
from mica.thin.image import ImageWriter

LOCAL_KINDS = frozenset({"oci", "oci-archive"})
_HINT = "oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker://REF"


class Output(NamedTuple):
    """`kind` is oci, oci-archive or docker; `place` a file or the reference; without a tag it gets the original's."""

    kind: str
    place: str
    tag: str


def parse_output(text: str) -> Output:
    """Raises UserError. It is called before anything is published."""
    kind, _, place = text.partition(":")
    if kind == "docker" and place.startswith("//"):
        reference = Reference.parse(place[2:])
        if reference.digest is not None:
            raise UserError(f"{text!r} has a digest, which a thin image gets only when it is made.")
        has_tag = ":" in place.rpartition("/")[2]
        return Output(kind, reference.name, (reference.tag or "") if has_tag else "")
    path, tag = _split_tag(place)
    if kind not in LOCAL_KINDS or not path:
        raise UserError(f"{text!r} is not {_HINT}.")
    return Output(kind, path, tag)


@contextlib.contextmanager
def open_output(output: Output, registry: RegistryOptions, *, tag: str) -> Iterator[ImageWriter]:
    """A writer for the length of a block; `tag` is the tag that will be written."""
    if output.kind == "docker":
        with open_registry(registry) as client:
            yield RegistryWriter(client, Reference.parse(f"{output.place}:{tag}"))
    elif output.kind == "oci-archive":
        with open_layout_archive_writer(Path(output.place)) as writer:
            yield writer
    else:
        yield LayoutWriter(Path(output.place))


def _split_tag(place: str) -> tuple[str, str]:
    path, colon, tag = place.rpartition(":")
    return (path, tag) if colon and "/" not in tag and path else (place, "")
