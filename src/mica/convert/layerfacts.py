"""Layer facts, the document beside each layer: what it is and what was changed to fit (docs/format/thin-image.md).

They are written after a layer's digests were verified to the last byte, so their diff id is right. If a layer is
published already, the diff id in an image's configuration is compared with it. Pure except for reading the store.
"""

import json
from collections.abc import Iterable, Mapping

from mica.errors import IntegrityError
from mica.oci.blobdigest import split_digest
from mica.oci.image import ImageSource
from mica.publish.catalogtree import CatalogTree
from mica.publish.storedfiles import load_file
from mica.store.base import ObjectStore
from mica.thin.layout import facts_path

FORMAT_VERSION = 4
SIZE_LIMIT = 64 << 20
"""Bytes of a document that are read at most: a dozen lists of about 1 MiB, and JSON's own bytes."""


def format_facts(facts: Mapping[str, object]) -> bytes:
    return json.dumps(facts, indent=1, sort_keys=True).encode("utf-8") + b"\n"


class DiffIds:
    """The diff ids of published layers, each read once."""

    def __init__(self, catalogs: CatalogTree, store: ObjectStore) -> None:
        self._catalogs = catalogs
        self._store = store
        self._known: dict[str, str] = {}

    def of(self, digest: str) -> str:
        """The verified diff id of a layer; empty for one that is not published or that another tool published."""
        if digest not in self._known:
            self._known[digest] = self._read(digest)
        return self._known[digest]

    def know(self, layers: Mapping[str, str]) -> None:
        """The diff ids of layers whose facts need not be read: they were just published."""
        self._known.update(layers)

    def _read(self, digest: str) -> str:
        path = facts_path(digest)
        data = load_file(self._catalogs, self._store, path, limit=SIZE_LIMIT)
        if data is None:
            return ""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"The layer facts {path.decode()} are not JSON.") from error
        diff_id = document.get("diff_id") if isinstance(document, dict) else None
        return diff_id if isinstance(diff_id, str) else ""


def check_diff_ids(images: Iterable[ImageSource], diff_ids: DiffIds) -> None:
    """Compare diff ids in configurations with those of published layers. Raises IntegrityError.

    The diff id of a new layer is verified as it streams by; this is for layers that are not read again. A diff id of
    another algorithm cannot be compared, and its layer gets no chain link.
    """
    for image in images:
        for layer in image.layers:
            known = diff_ids.of(layer.digest)
            if known != layer.diff_id and split_digest(known)[0] == split_digest(layer.diff_id)[0]:
                raise IntegrityError(
                    f"The configuration of {image.name} states the diff id {layer.diff_id} for layer {layer.digest},"
                    f" which unpacks to {known}.",
                    hint="The image is damaged or forged; nothing of it was published.",
                )
