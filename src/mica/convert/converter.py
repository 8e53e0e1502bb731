"""From a name to a thin image: opened, converted, written. What the command line, recipes and the portal share.

Any thread; conversions in several threads share layers as those of several processes do.
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mica.errors import UserError
from mica.oci.choice import ImageChoice
from mica.oci.image import ImageSource, PlatformImage
from mica.oci.models import Descriptor
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.oci.source import SourceOptions, open_choice
from mica.publish.manager import ReleaseManager
from mica.thin.building import DEFAULT_LIMITS, ConversionLimits
from mica.thin.convert import (
    DEFAULT_JOBS,
    Conversion,
    Observer,
    PlannedLayer,
    SilentObserver,
    WantedImage,
    convert,
    describe,
    plan_conversion,
)
from mica.thin.image import ImageWriter, ThinImage, write_thin_image, write_thin_index
from mica.thin.record import ImageRecord
from mica.thin.trace import ProgramTrace


@dataclass(frozen=True, slots=True)
class ConverterOptions:
    """`wait_s`: how long to wait for who publishes into the repository meanwhile. `max_image_bytes`: compressed."""

    source: SourceOptions = field(default_factory=SourceOptions)
    limits: ConversionLimits = DEFAULT_LIMITS
    jobs: int = DEFAULT_JOBS
    wait_s: float = 0.0
    max_image_bytes: int = 1 << 50


@dataclass(frozen=True, slots=True)
class Platforms:
    """Which images of an index: all, the best for each of several platforms, or the one for the only one (or none,
    which is this machine's)."""

    wanted: tuple[Platform, ...] = ()
    every: bool = False

    @property
    def is_one(self) -> bool:
        return not self.every and len(self.wanted) < 2


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """`images` from one name; `is_index` tells whether their thin images become an index. `digest` is that of what the
    name points at."""

    reference: Reference
    digest: str
    images: tuple[PlatformImage, ...]
    is_index: bool

    @property
    def main(self) -> PlatformImage:
        """The one that the name stands for where only one can be told: this machine's, else the first."""
        here = Platform.here()
        return next((one for one in self.images if here.runs(one.platform)), self.images[0])


class Converter:
    """Converts into one repository."""

    def __init__(self, manager: ReleaseManager, options: ConverterOptions, *, observer: Observer | None = None) -> None:
        self._manager = manager
        self._options = options
        self._observer = observer or SilentObserver()
        self._stop = threading.Event()

    def stop(self) -> None:
        """End all conversions under way, now and later, by StoppedError; what they finished stays staged."""
        self._stop.set()

    @contextlib.contextmanager
    def opened(self, source: str, platforms: Platforms, *, name: str = "") -> Iterator[OpenedSource]:
        """What a source stands for, to plan or to convert it. `name` instead of the one that it has.

        Raises UserError for a source without a name.
        """
        with open_choice(source, options=self._options.source) as choice:
            images = _chosen(choice, platforms, source)
            reference = _reference(images[0].image, source, name)
            for one in images:
                describe(one.image, self._manager.fqrn, "")
            opened = OpenedSource(
                reference, choice.digest or images[0].image.manifest_digest, tuple(images), is_index=len(images) > 1
            )
            self._check_size(opened)
            yield opened

    def plan(self, opened: OpenedSource) -> list[PlannedLayer]:
        return plan_conversion([one.image for one in opened.images], self._manager)

    def convert(self, opened: OpenedSource, traces: Sequence[ProgramTrace] = ()) -> Conversion:
        """Publish layers and records: under the name that of the main image, under their digests those of an index.

        `traces` are the main image's; without any, those that it has stay.
        """
        wanted = [WantedImage(opened.main.image, self._record(opened, opened.main.image), tuple(traces))]
        if opened.is_index:
            wanted += [WantedImage(one.image, self._record(opened, one.image, by_digest=True)) for one in opened.images]
        options = self._options
        return convert(
            wanted, self._manager,
            observer=self._observer, limits=options.limits, jobs=options.jobs, wait_s=options.wait_s, stop=self._stop,
        )  # fmt: skip

    def write(self, opened: OpenedSource, writer: ImageWriter, *, tag: str) -> Descriptor:
        """Write the thin image or the index of thin images."""
        thin = [
            ThinImage(self._record(opened, one.image).descriptor, one.image.config.document(), one.platform)
            for one in opened.images
        ]
        return (
            write_thin_index(writer, thin, tag=tag) if opened.is_index else write_thin_image(writer, thin[0], tag=tag)
        )

    def _record(self, opened: OpenedSource, image: ImageSource, *, by_digest: bool = False) -> ImageRecord:
        reference = opened.reference
        descriptor = describe(image, self._manager.fqrn, str(reference))
        if by_digest:
            reference = Reference(reference.registry, reference.repository, None, image.manifest_digest)
        return ImageRecord(
            reference, image.manifest_digest, json.loads(image.manifest.raw), image.config.document(), descriptor
        )

    def _check_size(self, opened: OpenedSource) -> None:
        for one in opened.images:
            size = sum(layer.size for layer in one.image.layers)
            if size > self._options.max_image_bytes:
                raise UserError(
                    f"{opened.reference} has {size} bytes of layers, more than the {self._options.max_image_bytes} "
                    "allowed."
                )


def _chosen(choice: ImageChoice, platforms: Platforms, source: str) -> Sequence[PlatformImage]:
    if platforms.every:
        images = choice.every()
        if not images:
            raise UserError(f"{source} is an index without any image.")
        return images
    if not platforms.is_one:
        return choice.some(platforms.wanted, name=source)
    image = choice.one(platforms.wanted[0] if platforms.wanted else None)
    return [PlatformImage(image.config.platform, image)]


def _reference(image: ImageSource, source: str, name: str) -> Reference:
    if name:
        return Reference.parse(name)
    if image.reference is not None:
        return image.reference
    raise UserError(f"{source} does not tell the name of the image.", hint="Give one with --tag REGISTRY/NAME:TAG.")
