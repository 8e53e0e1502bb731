"""Images by the names that users give: sources to convert, thin images to run."""

import os
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mica.errors import NotFoundError, UserError
from mica.files import mapped_os_errors
from mica.oci.image import ImageSource
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.oci.source import SCHEMES, open_image, scheme_of
from mica.thin.descriptor import SIZE_LIMIT, parse_descriptor
from mica.thin.image import ThinImage, require_thin
from mica.thin.layout import image_path
from mica.thin.record import RECORD_LIMIT, parse_record

if TYPE_CHECKING:
    from mica.cli.places import Places


def open_source(source: str, platform: str | None, config: Path | None) -> AbstractContextManager[ImageSource]:
    options = None
    if source.startswith("docker:"):  # only registries need HTTP, which is the larger half of all imports
        from mica.cli.registries import Access

        options = Access(config=config).source_options()
    return open_image(source, platform=platform or "", options=options)


def find_image(name: str, places: "Places", platform: str | None) -> ThinImage:
    """A thin image in a layout, archive or registry, a file `thin.json`, or a name that a known repository keeps."""
    if (source := source_of(name)) is not None:
        return _read_source(source, platform, places.config_path)
    path = Path(name)
    if os.path.isfile(path):
        return ThinImage(parse_descriptor(_read_start(path), name), {}, Platform.here())
    return _find_record(Reference.parse(name), places, Platform.parse(platform) if platform else None)


def source_of(name: str) -> str | None:
    """The name itself if it is a source, or the source for the directory of a layout. None for a file, or a name in a
    repository."""
    if scheme_of(name) in SCHEMES:
        return name
    # Not the methods of Path, which raise for a text that cannot be a path.
    return f"oci:{name}" if os.path.exists(Path(name) / "index.json") else None


def _read_source(source: str, platform: str | None, config: Path | None) -> ThinImage:
    with open_source(source, platform, config) as image:
        return ThinImage(require_thin(image), image.config.document(), image.config.platform)


def _find_record(reference: Reference, places: "Places", wanted: Platform | None) -> ThinImage:
    from mica.cli.browse import Browser

    path = image_path(reference)
    known = places.searched
    for fqrn in known:
        with Browser.open(places, fqrn) as browser:
            try:
                facts = browser.stat(path)
            except NotFoundError:
                continue
            if not isinstance(facts["size"], int) or facts["size"] > RECORD_LIMIT:
                raise UserError(f"The record of {reference} in {fqrn} is larger than a record can be.")
            record = parse_record(b"".join(browser.read(path)), f"{path.decode()} in {fqrn}")
            if wanted is not None and not record.platform.suits(wanted):
                raise UserError(
                    f"{reference} in {fqrn} is made for {record.platform}, not for {wanted}.",
                    hint="After --all-platforms each platform's image has a name with its digest: NAME@sha256:…",
                )
            # A node that knows an older revision than this one has to look again.
            descriptor = replace(record.descriptor, revisions=((fqrn, browser.revision),))
            return ThinImage(descriptor, record.config, record.platform)
    where = f"in {', '.join(known)}" if known else "and no repository is known here"
    raise NotFoundError(
        f"There is no image {reference} {where}.",
        hint="Convert it: mica convert docker://… FQRN; or name a thin image: oci:DIR:TAG, docker://REF.",
    )


def _read_start(path: Path) -> bytes:
    """The file, or so much of it that it is seen to be too large for a descriptor."""
    with mapped_os_errors(f"read {path}"), path.open("rb") as file:
        return file.read(SIZE_LIMIT + 1)
