"""The first phase: what leaves the newest revision, because nobody has wanted it for long enough.

    <home>/gc/unwanted.json     {"version": 1, "images": {"<reference>": <time>}, "layers": {"<hex>": <time>}}

The file remembers since when nobody wants an image or a layer. If it is lost, they stay longer. One thread.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mica.collect.retention import RetentionRules, expired_tags
from mica.collect.wishes import Recipes, foreign_layers, unwanted_images
from mica.convert.removal import list_records, own_layers, remove_layers, remove_record, stray_chains
from mica.digest import Digest
from mica.files import mapped_os_errors, replace_file
from mica.publish.catalogtree import CatalogTree
from mica.publish.transaction import Transaction
from mica.repo.history import History, Tag
from mica.store.base import ObjectStore
from mica.thin.record import ImageRecord

_VERSION = 1


@dataclass(slots=True)
class Unwanted:
    """Since when nobody wants images (by reference) and layers (by hex), in seconds since 1970."""

    images: dict[str, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)


class LeavingImage(NamedTuple):
    """A record that goes, or will go at a time. `layers` by hex."""

    reference: str
    path: bytes
    layers: tuple[str, ...]
    reason: str
    due_s: float


class LeavingLayer(NamedTuple):
    """`image`: the one that had it and nobody wants; empty if no record names the layer."""

    hex: str
    image: str
    due_s: float


@dataclass(frozen=True, slots=True)
class Removals:
    """What nobody wants: with `due_s` up to `now` it goes, else it waits."""

    now: float
    recipes: Recipes
    images: tuple[LeavingImage, ...]
    layers: tuple[LeavingLayer, ...]
    tags: tuple[Tag, ...]
    chains: tuple[bytes, ...]

    @property
    def due_images(self) -> list[LeavingImage]:
        return [image for image in self.images if image.due_s <= self.now]

    @property
    def due_layers(self) -> list[LeavingLayer]:
        return [layer for layer in self.layers if layer.due_s <= self.now]

    @property
    def is_anything_due(self) -> bool:
        return bool(self.due_images or self.due_layers or self.tags or self.chains)


def plan_removals(
    catalogs: CatalogTree,
    store: ObjectStore,
    history: History,
    *,
    head: Digest,
    recipes: Recipes,
    linked: Collection[str],
    since: Unwanted,
    rules: RetentionRules,
    now: float,
) -> Removals:
    """`linked`: layers that links in the repository lead into. `since` is brought up to date."""
    records = list(list_records(catalogs, store))
    images = _plan_images(records, recipes, since, rules, now)
    paths = {image.path for image in images}
    kept = {layer.digest for path, record in records if path not in paths for layer in record.descriptor.layers}
    unwanted = set(own_layers(catalogs)) - kept - set(linked) - foreign_layers(catalogs, store)
    since.layers = {layer: since.layers.get(layer, int(now)) for layer in sorted(unwanted)}
    owner = {layer: image.reference for image in reversed(images) for layer in image.layers}
    layers = [LeavingLayer(layer, owner.get(layer, ""), at + rules.keep_s) for layer, at in since.layers.items()]
    tags = expired_tags(history, rules, now, head=head)
    chains = tuple(stray_chains(catalogs))
    return Removals(now, recipes, tuple(images), tuple(layers), tuple(tags), chains)


def _plan_images(
    records: list[tuple[bytes, ImageRecord]], recipes: Recipes, since: Unwanted, rules: RetentionRules, now: float
) -> list[LeavingImage]:
    found = []
    unwanted = unwanted_images(records, recipes)
    since.images = {
        text: min(since.images.get(text, int(now)), recipes.due.get(text, int(now)))
        for text in sorted(str(record.reference) for _, record in unwanted)
    }
    for path, record in unwanted:
        text = str(record.reference)
        reason = "its recipe gave it up" if text in recipes.due else "no recipe, link or tag wants it"
        layers = tuple(layer.digest for layer in record.descriptor.layers)
        found.append(LeavingImage(text, path, layers, reason, since.images[text] + rules.keep_s))
    return found


def remove_due(transaction: Transaction, removals: Removals) -> bool:
    """Remove what is due, in a transaction; whether there was anything. What somebody wants again by now stays."""
    catalogs = transaction.catalogs
    records = list(list_records(catalogs, transaction.store))
    due = {image.path for image in removals.due_images}
    images = {path for path, _ in unwanted_images(records, removals.recipes) if path in due}
    for path in images:
        remove_record(catalogs, path)
    named = {layer.digest for path, record in records if path not in images for layer in record.descriptor.layers}
    layers = {layer.hex for layer in removals.due_layers} & set(own_layers(catalogs)) - named
    remove_layers(catalogs, layers)
    chains = stray_chains(catalogs)
    for path in chains:
        catalogs.remove(path)
    return bool(images or layers or chains)


def read_unwanted(path: Path) -> Unwanted:
    """A file that cannot be understood tells nothing."""
    with mapped_os_errors(f"read {path}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return Unwanted()
    try:
        document: dict[str, Any] = json.loads(data)
        if document["version"] != _VERSION:
            return Unwanted()
        images, layers = ({str(k): int(v) for k, v in document[name].items()} for name in ("images", "layers"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Unwanted()
    return Unwanted(images, layers)


def write_unwanted(path: Path, since: Unwanted) -> None:
    document = {"version": _VERSION, "images": since.images, "layers": since.layers}
    with mapped_os_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(document, indent=1).encode("utf-8") + b"\n")
