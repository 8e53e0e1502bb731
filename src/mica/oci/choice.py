"""What one name stands for: an image, or an index of images for several platforms. Any thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mica.errors import UserError
from mica.oci.image import BlobReader, Image, PlatformImage, checked_platform, open_every, open_manifest
from mica.oci.models import Index, Manifest
from mica.oci.platforms import Platform, best_platform
from mica.oci.reference import Reference


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """`digest` is that of what the name points at; empty where the place has none for it.

    `one` opens the image for a platform (None: this machine's where there is a choice), `every` all of them.
    """

    digest: str
    one: Callable[[Platform | None], Image]
    every: Callable[[], list[PlatformImage]]

    def some(self, platforms: Sequence[Platform], *, name: str) -> list[PlatformImage]:
        """The best for each of some platforms, as far as there is one. Raises UserError if there is none at all."""
        images = self.every()
        found = {}
        for wanted in platforms:
            best = best_platform(wanted, (one.platform for one in images))
            if best is not None:
                found[best] = next(one for one in images if one.platform == best)
        if not found:
            raise UserError(f"{name} is not made for any of {', '.join(map(str, platforms))}.")
        return list(found.values())


def only_choice(image: Image) -> ImageChoice:
    """An image without a choice."""
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
