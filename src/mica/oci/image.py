"""An opened image, wherever it is: what a converter works on.

`ImageSource` is the seam; `Image` is the one implementation, put together by source.py, dockerarchive.py and
registry.py from a manifest, a configuration and a way to open a blob. Any thread.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mica.errors import IntegrityError, UserError
from mica.oci import mediatypes
from mica.oci.blobdigest import blob_digest
from mica.oci.layerstream import LayerStream, Readable, open_layer
from mica.oci.models import Descriptor, ImageConfig, Index, Manifest, parse_config, parse_image_document
from mica.oci.platforms import Platform, best_platform
from mica.oci.reference import Reference

_INDEX_DEPTH = 4
_PLATFORM_LIMIT = 100
_UNKNOWN_OS = "unknown"


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer of an image: its stored bytes by descriptor, its tar by diff id."""

    descriptor: Descriptor
    diff_id: str

    @property
    def digest(self) -> str:
        return self.descriptor.digest

    @property
    def size(self) -> int:
        return self.descriptor.size

    @property
    def media_type(self) -> str:
        return self.descriptor.media_type


class ImageSource(Protocol):
    """An image that can be read until its block ends. Layers may be opened side by side from several threads."""

    @property
    def reference(self) -> Reference | None:
        """The registry name, where the image came with one."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def manifest(self) -> Manifest:
        """As stored; made from the content where an archive has none."""

    @property
    def manifest_digest(self) -> str: ...

    @property
    def config(self) -> ImageConfig: ...

    @property
    def layers(self) -> Sequence[LayerSource]:
        """Lowest first; may be empty."""

    def open_layer(self, layer: LayerSource, max_bytes: int) -> AbstractContextManager[LayerStream]:
        """The verified tar of a layer of at most max_bytes: see layerstream.py."""


class BlobReader(Protocol):
    """Where an image's documents and blobs come from."""

    def read_document(self, descriptor: Descriptor, *, what: str) -> bytes: ...

    def open_blob(self, descriptor: Descriptor) -> AbstractContextManager[Readable]: ...


@dataclass(frozen=True, slots=True)
class Image:
    """An `ImageSource` over anything that opens blobs."""

    name: str
    reference: Reference | None
    manifest: Manifest
    config: ImageConfig
    layers: tuple[LayerSource, ...]
    _open_blob: Callable[[Descriptor], AbstractContextManager[Readable]]

    @property
    def manifest_digest(self) -> str:
        return blob_digest(self.manifest.raw)

    def open_stored(self, descriptor: Descriptor) -> AbstractContextManager[Readable]:
        """A blob as it is stored, not verified."""
        return self._open_blob(descriptor)

    @contextlib.contextmanager
    def open_layer(self, layer: LayerSource, max_bytes: int) -> Iterator[LayerStream]:
        with (
            self._open_blob(layer.descriptor) as raw,
            open_layer(raw, layer.descriptor, layer.diff_id, max_bytes=max_bytes, image=self.name) as stream,
        ):
            yield stream


class PlatformImage(NamedTuple):
    """One image of an index, and what the index says it is for."""

    platform: Platform
    image: Image


def assemble_image(
    manifest: Manifest, config_data: bytes, reader: BlobReader, *, name: str, reference: Reference | None
) -> Image:
    """Check that the parts belong together. Raises UserError for what is no image, IntegrityError for a mismatch."""
    config = parse_config(config_data, what=f"The configuration of {name}")
    if len(manifest.layers) != len(config.diff_ids):
        raise IntegrityError(
            f"{name} has {len(manifest.layers)} layers and {len(config.diff_ids)} diff ids in its configuration."
        )
    for layer in manifest.layers:
        if layer.media_type not in mediatypes.LAYERS:
            raise UserError(f"Layer {layer.digest} of {name} is of an unknown kind: {layer.media_type[:100]!r}.")
    layers = tuple(LayerSource(layer, diff_id) for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True))
    return Image(name, reference, manifest, config, layers, reader.open_blob)


def open_described(
    descriptors: Sequence[Descriptor],
    reader: BlobReader,
    *,
    platform: Platform | None,
    name: str,
    reference: Reference | None = None,
) -> Image:
    """Follow descriptors down to one image: indexes by platform, then manifest and configuration."""
    for _ in range(_INDEX_DEPTH):
        chosen = choose_manifest(descriptors, platform or Platform.here(), name=name)
        data = reader.read_document(chosen, what=f"The manifest of {name}")
        document = parse_image_document(data, media_type=chosen.media_type, what=f"The manifest of {name}")
        if isinstance(document, Manifest):
            return open_manifest(document, reader, platform=platform, name=name, reference=reference)
        descriptors = document.manifests
    raise UserError(f"{name} is an index of indexes of indexes.")


def open_every(
    descriptors: Sequence[Descriptor],
    reader: BlobReader,
    *,
    name: str,
    reference: Reference | None = None,
    depth: int = 1,
) -> "list[PlatformImage]":
    """All images that descriptors lead to, in their order. Raises UserError for more than 100, or indexes too deep."""
    found: list[PlatformImage] = []
    for descriptor in descriptors:
        if descriptor.platform is not None and descriptor.platform.os == _UNKNOWN_OS:
            continue
        data = reader.read_document(descriptor, what=f"The manifest of {name}")
        document = parse_image_document(data, media_type=descriptor.media_type, what=f"The manifest of {name}")
        if isinstance(document, Manifest):
            image = open_manifest(document, reader, platform=None, name=name, reference=reference)
            found.append(PlatformImage(descriptor.platform or image.config.platform, image))
        elif depth < _INDEX_DEPTH:
            found += open_every(document.manifests, reader, name=name, reference=reference, depth=depth + 1)
        else:
            raise UserError(f"{name} is an index of indexes of indexes.")
        if len(found) > _PLATFORM_LIMIT:
            raise UserError(f"{name} has more than {_PLATFORM_LIMIT} images.")
    return found


def open_document(
    document: Index | Manifest,
    reader: BlobReader,
    *,
    platform: Platform | None,
    name: str,
    reference: Reference | None = None,
) -> Image:
    """The same from a document that is already at hand."""
    if isinstance(document, Manifest):
        return open_manifest(document, reader, platform=platform, name=name, reference=reference)
    return open_described(document.manifests, reader, platform=platform, name=name, reference=reference)


def open_manifest(
    manifest: Manifest, reader: BlobReader, *, platform: Platform | None, name: str, reference: Reference | None
) -> Image:
    if manifest.config.media_type not in mediatypes.CONFIGS:
        raise UserError(f"{name} is not a container image but {manifest.config.media_type[:100]!r}.")
    data = reader.read_document(manifest.config, what=f"The configuration of {name}")
    return checked_platform(assemble_image(manifest, data, reader, name=name, reference=reference), platform)


def checked_platform(image: Image, wanted: Platform | None) -> Image:
    """The image itself: one without a choice is taken as it is, unless another platform was asked for.

    Variants are the index's business: configurations mostly leave them out.
    """
    made_for = image.config.platform
    if wanted is not None and (made_for.os, made_for.architecture) != (wanted.os, wanted.architecture):
        raise UserError(f"{image.name} is made for {made_for}, not for {wanted}.")
    return image


def choose_manifest(descriptors: Sequence[Descriptor], wanted: Platform, *, name: str) -> Descriptor:
    """The one for a platform; the only one there is, if it does not say what it is for. Raises UserError."""
    if len(descriptors) == 1 and descriptors[0].platform is None:
        return descriptors[0]
    # Build attestations stand among the images as platform unknown/unknown.
    by_platform = {one.platform: one for one in reversed(descriptors) if _is_image(one)}
    best = best_platform(wanted, (platform for platform in by_platform if platform is not None))
    if best is None:
        raise UserError(f"{name} is not made for {wanted}.", hint=_platforms_hint(by_platform))
    return by_platform[best]


def _is_image(descriptor: Descriptor) -> bool:
    return descriptor.platform is not None and descriptor.platform.os != _UNKNOWN_OS


def _platforms_hint(platforms: Iterable[Platform | None]) -> str:
    texts = sorted({str(one)[:60] for one in platforms})
    return f"It exists for: {', '.join(texts[:20])}" if texts else "It names no platform at all."
