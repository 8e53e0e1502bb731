"""From a name to a thin image: opened, converted, written. The command line, recipes and the portal share it.

Any thread; conversions in several threads share layers as those of several processes do.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mica.convert.layerbuilder import DEFAULT_LIMITS, ConversionLimits
from mica.convert.making import DEFAULT_JOBS, LayerMaker, ProcessMaker
from mica.convert.plan import Observer, PlannedLayer, SilentObserver, plan_conversion
from mica.convert.publishing import Conversion, WantedImage, convert, describe
from mica.errors import UserError
from mica.oci.image import ImageChoice, ImageSource, NoImageError, PlatformImage
from mica.oci.models import Descriptor
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.oci.source import SourceOptions, open_choice
from mica.publish.manager import ReleaseManager
from mica.thin.image import ImageWriter, ThinImage, write_thin_image, write_thin_index
from mica.thin.record import ImageRecord
from mica.thin.trace import ProgramTrace


@dataclass(frozen=True, slots=True)
class ConverterOptions:
    """`wait_s`: how long to wait for another publisher of the repository. `max_image_bytes`: compressed. `open_maker`:
    who makes the layers of a repository; without it this process does."""

    source: SourceOptions = field(default_factory=SourceOptions)
    limits: ConversionLimits = DEFAULT_LIMITS
    jobs: int = DEFAULT_JOBS
    wait_s: float = 0.0
    max_image_bytes: int = 1 << 50
    open_maker: Callable[[ReleaseManager], LayerMaker] | None = None


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
    """`images` from one name, opened from `source`; `is_index` tells whether their thin images become an index.
    `digest` is that of the manifest or index that the name points at."""

    source: str
    reference: Reference
    digest: str
    images: tuple[PlatformImage, ...]
    is_index: bool

    @property
    def main(self) -> PlatformImage:
        """The image for places that take only one: this machine's, else the first."""
        here = Platform.here()
        return next((one for one in self.images if here.runs(one.platform)), self.images[0])


class Converter:
    """Converts into one repository."""

    def __init__(self, manager: ReleaseManager, options: ConverterOptions, *, observer: Observer | None = None) -> None:
        self._manager = manager
        self._options = options
        self._observer = observer or SilentObserver()
        self._stop = threading.Event()
        self._maker: LayerMaker = (
            options.open_maker(manager)
            if options.open_maker
            else ProcessMaker(manager, options.limits, jobs=options.jobs)
        )

    def stop(self) -> None:
        """End all present and later conversions by StoppedError; layers that they finished stay staged."""
        self._stop.set()

    @contextlib.contextmanager
    def opened(self, source: str, platforms: Platforms, *, name: str = "") -> Iterator[OpenedSource]:
        """The images of a source, to plan or to convert them. `name` replaces the source's own.

        Raises UserError for a source without a name.
        """
        with open_choice(source, options=self._options.source) as choice:
            images = _chosen(choice, platforms, source)
            reference = _reference(images[0].image, source, name)
            for one in images:
                describe(one.image, self._manager.fqrn, "")
            opened = OpenedSource(
                source, reference, choice.digest or images[0].image.manifest_digest, tuple(images),
                is_index=len(images) > 1,
            )  # fmt: skip
            self._check_size(opened)
            yield opened

    def plan(self, opened: OpenedSource) -> Sequence[PlannedLayer]:
        return plan_conversion([one.image for one in opened.images], self._manager, self._maker.find_staged).layers

    def convert(self, opened: OpenedSource, traces: Sequence[ProgramTrace] = ()) -> Conversion:
        """Publish layers and records: the main image's under the name, those of an index under their digests.

        `traces` are the main image's; without any, its old ones stay.
        """
        wanted = [WantedImage(opened.main.image, self._record(opened, opened.main.image), tuple(traces))]
        if opened.is_index:
            wanted += [WantedImage(one.image, self._record(opened, one.image, by_digest=True)) for one in opened.images]
        return convert(
            wanted, self._manager, self._maker,
            source=opened.source, observer=self._observer, wait_s=self._options.wait_s, stop=self._stop,
        )  # fmt: skip

    def write(self, opened: OpenedSource, conversion: Conversion, writer: ImageWriter, *, tag: str) -> Descriptor:
        """Write the thin image or the index of thin images."""
        thin = [
            ThinImage(conversion.descriptors[one.image.manifest_digest], one.image.config.document(), one.platform)
            for one in opened.images
        ]
        return (
            write_thin_index(writer, thin, tag=tag) if opened.is_index else write_thin_image(writer, thin[0], tag=tag)
        )

    def _record(self, opened: OpenedSource, image: ImageSource, *, by_digest: bool = False) -> ImageRecord:
        reference = opened.reference
        descriptor = describe(image, self._manager.fqrn, str(reference))
        index: tuple[str, ...] | None = None
        if by_digest:
            reference = Reference(reference.registry, reference.repository, None, image.manifest_digest)
        else:
            index = tuple(one.image.manifest_digest for one in opened.images) if opened.is_index else ()
        return ImageRecord(
            reference, image.manifest_digest, json.loads(image.manifest.raw), image.config.document(), descriptor, index
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
            raise NoImageError(f"{source} is an index without any image.")
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
    raise UserError(f"{source} gives no name for the image.", hint="Give one with --tag REGISTRY/NAME:TAG.")
