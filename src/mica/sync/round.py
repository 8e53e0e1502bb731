"""One round of a recipe: every wish looked at, what changed converted and pushed, what is gone scheduled and removed.

A tag is what its digest is: it is asked for with HEAD, which registries do not count, and nothing is converted while it
stays. A wish that fails is a result with a sentence, never the end of the round. Records of images that left the
recipe, or that a tag moved away from, are forgotten after a grace period, and layers that no record has named for as
long go with them. One thread, and those of the converter.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mica.errors import MicaError, UserError
from mica.oci.endpoints import HostConfig, plain_http_config
from mica.oci.push import RegistryWriter
from mica.oci.reference import Reference
from mica.oci.registry import RegistryClient, open_registry
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions
from mica.oci.tagpattern import TagPattern
from mica.publish.manager import ReleaseManager
from mica.sync.recipe import Recipe, Wish, format_output, parse_output_name
from mica.sync.state import SyncedImage, SyncState
from mica.thin.convert import Conversion, Observer
from mica.thin.converter import Converter, ConverterOptions, OpenedSource, Platforms
from mica.thin.layout import image_path
from mica.thin.removal import list_records, remove_layers, remove_record, unused_layers

Notify = Callable[[dict[str, Any]], None]


class Outcome(StrEnum):
    """How an image fared in a round."""

    CONVERTED = "converted"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ImageResult:
    """`error` is there if it failed; `image` is then the line of the recipe if it could not even be read."""

    image: str
    outcome: Outcome
    new_layers: int = 0
    error: MicaError | None = None


@dataclass(frozen=True, slots=True)
class RoundResult:
    """`removed` are references of records, `scheduled` how many wait; `removed_layers` how many layers went."""

    images: tuple[ImageResult, ...]
    removed: tuple[str, ...]
    scheduled: int
    removed_layers: int

    @property
    def exit_code(self) -> int:
        """0, or the code of the failures if all have the same, 1 otherwise."""
        codes = {one.error.exit_code for one in self.images if one.error is not None}
        return 0 if not codes else codes.pop() if len(codes) == 1 else UserError.exit_code


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """`output` is how the registry that thin images are pushed to is spoken to."""

    converter: ConverterOptions
    output: RegistryOptions
    platforms: Platforms
    grace_s: int


class SyncRound:
    """Made for each round. `should_stop` is asked between images."""

    def __init__(
        self,
        recipe: Recipe,
        manager: ReleaseManager,
        state: SyncState,
        options: SyncOptions,
        *,
        observer: Observer,
        notify: Notify,
        should_stop: Callable[[], bool],
    ) -> None:
        self._recipe = recipe
        self._manager = manager
        self._state = state
        self._options = options
        self._notify = notify
        self._should_stop = should_stop
        plain = frozenset(wish.registry for wish in recipe.wishes if wish.scheme == "http")
        registry = _with_plain_http(options.converter.source.registry or RegistryOptions(), plain)
        source = SourceOptions(registry=registry)
        self._registry = registry
        self._converter = Converter(manager, dataclasses.replace(options.converter, source=source), observer=observer)
        self._due_s = int(time.time()) + options.grace_s

    def run(self) -> RoundResult:
        results: list[ImageResult] = []
        wanted: set[str] = set()
        unclear: list[Wish] = []
        with open_registry(self._registry) as client:
            for wish in self._recipe.wishes:
                if self._should_stop():
                    unclear = list(self._recipe.wishes)
                    break
                try:
                    references = _references(wish, client)
                except MicaError as error:
                    unclear.append(wish)
                    results.append(self._failed(wish.text, error))
                    continue
                for reference in references:
                    if reference.text not in wanted:
                        wanted.add(reference.text)
                        results.append(self._look_at(reference, wish, client))
        self._schedule(wanted, unclear)
        removed, layers = self._removed(results)
        return RoundResult(tuple(results), tuple(removed), len(self._state.leaving), layers)

    def _look_at(self, reference: Reference, wish: Wish, client: RegistryClient) -> ImageResult:
        try:
            return self._sync(reference, wish, client)
        except MicaError as error:
            return self._failed(reference.text, error)

    def _sync(self, reference: Reference, wish: Wish, client: RegistryClient) -> ImageResult:
        output = format_output(self._recipe.output_format, reference, wish.scheme)
        target = parse_output_name(output) if output else None
        digest = client.digest_of(reference)
        known = self._state.images.get(reference.text)
        if known is not None and (known.digest, known.output) == (digest, output):
            return ImageResult(reference.text, Outcome.UNCHANGED)
        with self._converter.opened(f"docker://{reference.text}", self._options.platforms) as opened:
            conversion = self._converter.convert(opened)
            if target is not None:
                self._push(opened, *target)
            image = SyncedImage(opened.digest, output, _records(opened))
        self._state.put(reference.text, image, due_s=self._due_s)
        self._tell_converted(reference, digest, output, conversion)
        new_layers = sum(layer.is_new for layer in conversion.layers)
        return ImageResult(reference.text, Outcome.CONVERTED, new_layers)

    def _push(self, opened: OpenedSource, scheme: str, target: Reference) -> None:
        plain = frozenset({target.registry} if scheme == "http" else ())
        with open_registry(_with_plain_http(self._options.output, plain)) as client:
            self._converter.write(opened, RegistryWriter(client, target), tag=target.version)

    def _schedule(self, wanted: set[str], unclear: list[Wish]) -> None:
        """Images that left the recipe. A line that could not be read or resolved may have meant any of its own; one
        that is not even a name may have meant any at all."""
        if any(wish.problem for wish in unclear):
            return
        kept = {f"{wish.registry}/{_repository(wish)}" for wish in unclear}
        for text in sorted(set(self._state.images) - wanted):
            reference = Reference.parse(text)
            if reference.name not in kept:
                self._state.drop(text, due_s=self._due_s)
                self._notify({"action": "schedule", "image": text, "status": "done", "due": self._due_s})

    def _removed(self, results: list[ImageResult]) -> tuple[list[str], int]:
        """What went; a failure is a result like any other, and nothing went."""
        try:
            return self._remove_due()
        except MicaError as error:
            results.append(self._failed("(removal)", error))
            return [], 0

    def _remove_due(self) -> tuple[list[str], int]:
        now_s = int(time.time())
        due = self._state.due(now_s)
        with self._manager.snapshot() as catalogs:
            paths = {image_path(Reference.parse(text)) for text in due}
            records = [one for path, one in list_records(catalogs, self._manager.store) if path not in paths]
            unused = unused_layers(catalogs, records)
        self._state.unused = {layer: self._state.unused.get(layer, now_s) for layer in sorted(unused)}
        old = {layer for layer, since_s in self._state.unused.items() if since_s + self._options.grace_s <= now_s}
        if not due and not old:
            return [], 0
        removed = self._remove(due, old)
        self._state.forget(due, old)
        return removed, len(old)

    def _remove(self, due: list[str], old: set[str]) -> list[str]:
        """Publish a revision without some records and layers; returns the records that were there. Shrinks `old` to
        the layers that went."""
        with self._manager.transaction(wait_s=self._options.converter.wait_s) as transaction:
            removed = [text for text in due if remove_record(transaction.catalogs, image_path(Reference.parse(text)))]
            # Somebody may have converted an image with such a layer meanwhile.
            records = [record for _, record in list_records(transaction.catalogs, transaction.store)]
            old.intersection_update(unused_layers(transaction.catalogs, records))
            remove_layers(transaction.catalogs, old)
            if not removed and not old:
                transaction.give_up()
        for text in removed:
            self._notify({"action": "remove", "image": text, "status": "done"})
        return removed

    def _tell_converted(self, reference: Reference, digest: str, output: str, conversion: Conversion) -> None:
        self._notify({
            "action": "convert", "image": reference.text, "status": "done", "digest": digest, "output": output,
            "revision": conversion.revision, "new_layers": sum(layer.is_new for layer in conversion.layers),
        })  # fmt: skip

    def _failed(self, image: str, error: MicaError) -> ImageResult:
        self._notify({"action": "convert", "image": image, "status": "failed", "error": str(error)})
        return ImageResult(image, Outcome.FAILED, error=error)


def _references(wish: Wish, client: RegistryClient) -> Iterator[Reference] | list[Reference]:
    """Raises UserError for a line that is none, and what listing tags raises."""
    if wish.problem:
        raise UserError(f"{wish.text[:200]!r} is not an image to wish for: {wish.problem}.")
    pattern = TagPattern.parse(wish.name)
    if pattern is None:
        return [Reference.parse(wish.name)]
    repository = pattern.repository
    tags = pattern.matching(client.tags(repository))
    return [Reference(repository.registry, repository.repository, tag) for tag in tags]


def _repository(wish: Wish) -> str:
    pattern = TagPattern.parse(wish.name)
    return (pattern.repository if pattern is not None else Reference.parse(wish.name)).repository


def _records(opened: OpenedSource) -> tuple[str, ...]:
    name = opened.reference.name
    digests = [f"{name}@{one.image.manifest_digest}" for one in opened.images] if opened.is_index else []
    return (opened.reference.text, *digests)


def _with_plain_http(options: RegistryOptions, registries: frozenset[str]) -> RegistryOptions:
    if not registries:
        return options

    def find(registry: str) -> HostConfig:
        return plain_http_config(registry) if registry in registries else options.find_hosts(registry)

    return dataclasses.replace(options, find_hosts=find)
