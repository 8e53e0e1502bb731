"""The record of a converted image, kept in the repository under its name, so that it runs without any registry. Pure.

    {"version": 1, "reference": …, "converted_by": "mica …", "manifest_digest": …,
     "manifest": {…}, "config": {…}, "thin": {…},         manifest and config of the original, thin.json
     "index": ["sha256:…", …]}                            if somebody asked for this name: its other images, by digest

Its content depends only on the image and the version of mica; when it was converted is the file's time.
"""

import json
from dataclasses import dataclass
from typing import Any

from mica import __version__
from mica.errors import UserError, explain_parse_error
from mica.oci.models import parse_config
from mica.oci.platforms import Platform
from mica.oci.reference import Reference
from mica.thin.descriptor import ThinDescriptor, descriptor_document, parse_descriptor

RECORD_LIMIT = 16 << 20
_VERSION = 1


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """`manifest` and `config` are the original's documents. `index`: the images of the same index that have records of
    their own; None in those, and in records of versions of mica that did not know it."""

    reference: Reference
    manifest_digest: str
    manifest: dict[str, Any]
    config: dict[str, Any]
    descriptor: ThinDescriptor
    index: tuple[str, ...] | None = None

    @property
    def platform(self) -> Platform:
        texts = [str(self.config.get(name) or "") for name in ("os", "architecture", "variant")]
        return Platform(texts[0] or "linux", *texts[1:])


def format_record(record: ImageRecord) -> bytes:
    document: dict[str, Any] = {
        "version": _VERSION,
        "reference": str(record.reference),
        "converted_by": f"mica {__version__}",
        "manifest_digest": record.manifest_digest,
        "manifest": record.manifest,
        "config": record.config,
        "thin": descriptor_document(record.descriptor),
    }
    if record.index is not None:
        document["index"] = list(record.index)
    return json.dumps(document, indent=1, sort_keys=True).encode("utf-8") + b"\n"


def parse_record(data: bytes, what: str) -> ImageRecord:
    """Raises UserError naming `what`."""
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            raise ValueError("not a record of version 1")
        manifest, config, thin = (document.get(name) for name in ("manifest", "config", "thin"))
        if not isinstance(manifest, dict) or not isinstance(config, dict) or not isinstance(thin, dict):
            raise ValueError("manifest, config or thin is missing")
        index = document.get("index")
        if not (index is None or (isinstance(index, list) and all(isinstance(one, str) for one in index))):
            raise ValueError("index is not a list of digests")
        reference = Reference.parse(str(document.get("reference")))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not the record of an image: {explain_parse_error(error)}.") from error
    descriptor = parse_descriptor(json.dumps(thin).encode("utf-8"), what)
    parse_config(json.dumps(config).encode("utf-8"), what=f"The configuration in {what}")
    return ImageRecord(
        reference, str(document.get("manifest_digest", "")), manifest, config, descriptor,
        None if index is None else tuple(index),
    )  # fmt: skip
