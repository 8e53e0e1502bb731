"""What wants images and layers: records by their names, recipes, links in the repository, images of other tools. Reads
the newest revision; changes nothing. One thread.

A record of a tag is wanted until another image has the tag: then the new record replaces it. A record under a digest is
wanted if somebody asked for this digest, or if a tag of the same name has an index with it. Records of recipes are
wanted until their recipe gives them up, and then until they are due there (sync/state.py).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mica.convert.removal import files_below
from mica.publish.catalogtree import CatalogTree
from mica.publish.storedfiles import load_file
from mica.store.base import ObjectStore
from mica.sync.state import STATE_DIRECTORY, read_state
from mica.thin.record import ImageRecord

_FOREIGN_IMAGES: Final = b"/.metadata"
_FOREIGN_MANIFEST: Final = b"/manifest.json"
_FOREIGN_LIMIT: Final = 16 << 20
_LAYER_TARGET: Final = re.compile(rb"\.layers/[0-9a-f]{2}/([0-9a-f]{64,128})(?:/|$)")


@dataclass(frozen=True, slots=True)
class Recipes:
    """References of records: those that recipes want, and those that were given up and are due since a time."""

    wanted: frozenset[str] = frozenset()
    due: dict[str, int] = field(default_factory=dict)


def read_recipes(home: Path, now: float) -> Recipes:
    """From the state of all recipes of a repository. Raises UserError for a state that cannot be read: what it wants is
    not known."""
    wanted: set[str] = set()
    due: dict[str, int] = {}
    for path in sorted((home / STATE_DIRECTORY).glob("*.json")):
        state = read_state(path)
        wanted |= state.wanted_records
        for reference, at in state.leaving.items():
            if at > now:
                wanted.add(reference)
            else:
                due[reference] = max(at, due.get(reference, 0))
    return Recipes(frozenset(wanted), {reference: at for reference, at in due.items() if reference not in wanted})


def unwanted_images(records: list[tuple[bytes, ImageRecord]], recipes: Recipes) -> list[tuple[bytes, ImageRecord]]:
    """Records that nothing wants, with their paths."""
    by_name: dict[str, list[ImageRecord]] = {}
    for _, record in records:
        by_name.setdefault(record.reference.name, []).append(record)
    return [(path, record) for path, record in records if not _is_wanted(record, by_name, recipes)]


def _is_wanted(record: ImageRecord, by_name: dict[str, list[ImageRecord]], recipes: Recipes) -> bool:
    reference = record.reference
    if str(reference) in recipes.wanted:
        return True
    if str(reference) in recipes.due:
        return False
    if record.index is not None or reference.tag is not None:
        return True
    others = [other for other in by_name[reference.name] if other is not record]
    named = [other for other in others if other.reference.tag is not None or other.index is not None]
    if any(other.index is None for other in named):
        return True  # an older version of mica did not record which images an index has
    return any(reference.digest in (other.manifest_digest, *(other.index or ())) for other in named)


def foreign_layers(catalogs: CatalogTree, store: ObjectStore) -> set[str]:
    """Layers that images of DUCC have, by hex: it keeps its layers in the same places."""
    found: set[str] = set()
    for path, _ in files_below(catalogs, _FOREIGN_IMAGES):
        if path.endswith(_FOREIGN_MANIFEST):
            data = load_file(catalogs, store, path, limit=_FOREIGN_LIMIT)
            found |= set(_layers_of_manifest(data or b""))
    return found


def _layers_of_manifest(data: bytes) -> Iterator[str]:
    try:
        document: Any = json.loads(data)
        layers = document.get("Layers") or document.get("layers") or []
        for layer in layers:
            yield str(layer.get("Digest") or layer.get("digest") or "").partition(":")[2]
    except (ValueError, AttributeError, TypeError, RecursionError):
        return  # no manifest: the file of somebody else


def linked_layer(target: bytes) -> str | None:
    """The layer that a link leads into, by hex."""
    match = _LAYER_TARGET.search(target)
    return None if match is None else match[1].decode("ascii")
