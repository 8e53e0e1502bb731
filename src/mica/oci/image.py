"""An opened image from any place, and the images that one name stands for; the converter works on them.

`ImageSource` is the seam; `Image` is the one implementation, put together by source.py, dockerarchive.py and
registry.py from a manifest, a configuration and a way to open a blob. Any thread.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mica.errors import IntegrityError, UserError
from mica.oci import mediatypes
from mica.oci.blobdigest import blob_digest
from mica.oci.layerstream import LayerStream, open_layer
from mica.oci.models import Descriptor, ImageConfig, Index, Manifest, parse_config, parse_image_document
from mica.oci.platforms import Platform, best_platform
from mica.oci.reference import Reference
from mica.streams import Readable

_INDEX_DEPTH = 4
_PLATFORM_LIMIT = 100


class NoImageError(UserError):
    """The name does not stand for a container image but for a signature, a chart or a list of materials."""


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
    """An image that can be read until its block ends. Several threads may open layers at the same time."""

    @property
    def reference(self) -> Reference | None:
        """The registry name, where the image came with one."""

    @property
    def name(self) -> str:
        """Its name in messages."""

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
    """Check that the parts belong together. Raises UserError if it is not an image, IntegrityError for a mismatch."""
    config = parse_config(config_data, what=f"The configuration of {name}")
    for layer in manifest.layers:
        if layer.media_type not in mediatypes.LAYERS:
            # Signatures have an image's configuration; layers of an unknown compression have a layer's media type.
            kind = UserError if layer.media_type.startswith(mediatypes.LAYER_PREFIXES) else NoImageError
            raise kind(f"Layer {layer.digest} of {name} is of an unknown kind: {layer.media_type[:100]!r}.")
    if len(manifest.layers) != len(config.diff_ids):
        raise IntegrityError(
            f"{name} has {len(manifest.layers)} layers and {len(config.diff_ids)} diff ids in its configuration."
        )
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
    """Follow descriptors down to one image: indexes by platform, then manifest and configuration.

    Where no descriptor says that it is for the platform, the configurations of those that say nothing decide.
    """
    for _ in range(_INDEX_DEPTH):
        chosen = choose_manifest(descriptors, platform or Platform.here())
        if chosen is None:
            images = open_every(_unstated(descriptors), reader, name=name, reference=reference)
            return choose_image(images, descriptors, platform or Platform.here(), name=name)
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
    counter: Iterator[int] | None = None,
) -> "list[PlatformImage]":
    """All images that descriptors lead to, in their order; other documents are left out. Raises UserError for more than
    100 of either, or indexes too deep. `counter` has counted the documents that were read."""
    counter = itertools.count() if counter is None else counter
    found: list[PlatformImage] = []
    for descriptor in descriptors:
        if descriptor.is_artifact:
            continue
        if next(counter) >= _PLATFORM_LIMIT:
            raise UserError(f"{name} has more than {_PLATFORM_LIMIT} images.")
        data = reader.read_document(descriptor, what=f"The manifest of {name}")
        document = parse_image_document(data, media_type=descriptor.media_type, what=f"The manifest of {name}")
        if isinstance(document, Manifest):
            with contextlib.suppress(NoImageError):
                image = open_manifest(document, reader, platform=None, name=name, reference=reference)
                found.append(PlatformImage(descriptor.platform or image.config.platform, image))
        elif depth < _INDEX_DEPTH:
            found += open_every(
                document.manifests, reader, name=name, reference=reference, depth=depth + 1, counter=counter
            )
        else:
            raise UserError(f"{name} is an index of indexes of indexes.")
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
        raise NoImageError(f"{name} is not a container image but {manifest.config.media_type[:100]!r}.")
    data = reader.read_document(manifest.config, what=f"The configuration of {name}")
    return checked_platform(assemble_image(manifest, data, reader, name=name, reference=reference), platform)


def checked_platform(image: Image, wanted: Platform | None) -> Image:
    """The image itself: one without a choice is taken as it is, unless another platform was asked for.

    The index decides about variants, because configurations mostly leave them out. An image without a platform is for
    every platform, as with Docker.
    """
    made_for = image.config.platform
    if wanted is not None and not made_for.suits(wanted):
        raise UserError(f"{image.name} is made for {made_for}, not for {wanted}.")
    return image


def choose_manifest(descriptors: Sequence[Descriptor], wanted: Platform) -> Descriptor | None:
    """The image for a platform, or the only one if it does not state a platform; None if there is no such image."""
    if len(descriptors) == 1 and descriptors[0].platform is None:
        return descriptors[0]
    by_platform = {one.platform: one for one in reversed(descriptors) if not one.is_artifact}
    best = best_platform(wanted, (platform for platform in by_platform if platform is not None))
    return None if best is None else by_platform[best]


def choose_image(
    images: Sequence[PlatformImage], descriptors: Sequence[Descriptor], wanted: Platform, *, name: str
) -> Image:
    """The one whose configuration is for a platform, else one that leaves it open. Raises UserError that tells what the
    descriptors are for."""
    best = best_image(images, wanted)
    if best is None:
        if not images and all(one.is_artifact or one.platform is None for one in descriptors):
            raise NoImageError(f"{name} is an index without any image.")
        stated = {*(one.platform for one in descriptors if not one.is_artifact), *(one.platform for one in images)}
        raise UserError(f"{name} is not made for {wanted}.", hint=_platforms_hint(stated - {None}))
    return best.image


def best_image(images: Sequence[PlatformImage], wanted: Platform) -> PlatformImage | None:
    """The best for a platform; else one that does not state its platform."""
    best = best_platform(wanted, (one.platform for one in images))
    if best is not None:
        return next(one for one in images if one.platform == best)
    return next((one for one in images if one.platform.stated is None and one.platform.suits(wanted)), None)


def _unstated(descriptors: Sequence[Descriptor]) -> list[Descriptor]:
    return [one for one in descriptors if one.platform is None]


def _platforms_hint(platforms: Iterable[Platform | None]) -> str:
    texts = sorted({str(one)[:60] for one in platforms})
    return f"It exists for: {', '.join(texts[:20])}" if texts else "It names no platform at all."


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """`digest` is that of the manifest or index that the name points at; empty where the place has none.

    `one` opens the image for a platform (None: this machine's where there is a choice), `every` all of them.
    """

    digest: str
    one: Callable[[Platform | None], Image]
    every: Callable[[], list[PlatformImage]]

    def some(self, platforms: Sequence[Platform], *, name: str) -> list[PlatformImage]:
        """The best image for each platform that has one. Raises UserError if no platform has one."""
        images = self.every()
        found = [best for wanted in platforms if (best := best_image(images, wanted)) is not None]
        if not found:
            raise UserError(f"{name} is not made for any of {', '.join(map(str, platforms))}.")
        return [one for one in images if any(one is best for best in found)]


def only_choice(image: Image) -> ImageChoice:
    """A name that stands for one image only."""
    return ImageChoice(
        "",
        lambda platform: checked_platform(image, platform),
        lambda: [PlatformImage(image.config.platform, image)],
    )


def every_of_document(
    document: Index | Manifest, reader: BlobReader, *, name: str, reference: Reference | None
) -> list[PlatformImage]:
    if isinstance(document, Index):
        return open_every(document.manifests, reader, name=name, reference=reference)
    image = open_manifest(document, reader, platform=None, name=name, reference=reference)
    return [PlatformImage(image.config.platform, image)]
