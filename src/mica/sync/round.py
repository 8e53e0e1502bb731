"""One round of a recipe: looks at every wish, converts and pushes changed images, schedules and removes lost ones.

A tag is asked for with HEAD, which registries do not count, and converted only if its digest has changed. A wish that
fails is a result with a sentence, never the end of the round. After a grace period the round removes records of images
that left the recipe or that a tag no longer points at, and layers that no record has named for that long. If a list of
tags has lost many at once, nothing is removed without `--accept-removals`: registries, and proxies in front of them,
have sent halves of lists as whole ones. One thread, and those of the converter.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mica.convert.converter import Converter, ConverterOptions, OpenedSource, Platforms
from mica.convert.plan import Observer
from mica.convert.publishing import Conversion
from mica.convert.removal import list_records, remove_layers, remove_record, unused_layers
from mica.errors import MicaError, UserError
from mica.oci.endpoints import HostConfig, plain_http_config
from mica.oci.image import NoImageError
from mica.oci.push import RegistryWriter
from mica.oci.reference import Reference, TagPattern
from mica.oci.registry import RegistryClient, open_registry
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions
from mica.publish.manager import ReleaseManager
from mica.sync.recipe import Recipe, Wish, format_output, parse_output_name
from mica.sync.state import SyncedImage, SyncState
from mica.thin.layout import image_path

Notify = Callable[[dict[str, Any]], None]
_MUCH_PART = 0.25
_MUCH_AT_LEAST = 2


class Outcome(StrEnum):
    """The result of an image in a round. LEFT_OUT: a pattern matched something that is not an image, as a signature."""

    CONVERTED = "converted"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class ImageResult:
    """`error` is set if it failed; `image` is then the recipe's line if that could not be read."""

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
        """0 without failures, the failures' code if all have the same, 1 otherwise."""
        codes = {one.error.exit_code for one in self.images if one.error is not None}
        return 0 if not codes else codes.pop() if len(codes) == 1 else UserError.exit_code


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """`output` has the options for the registry of thin images. `accepts_removals`: images are removed even if a list
    of tags has lost many at once."""

    converter: ConverterOptions
    output: RegistryOptions
    platforms: Platforms
    grace_s: int
    accepts_removals: bool = False


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
                if lost := self._suddenly_lost(wish, references):
                    wanted |= lost
                    results.append(self._failed(wish.text, _sudden_loss(wish, lost)))
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
        try:
            return self._converted(reference, digest, output, target)
        except NoImageError:
            if TagPattern.parse(wish.name) is None:
                raise
        self._state.put(reference.text, SyncedImage(digest, output, ()), due_s=self._due_s)
        return ImageResult(reference.text, Outcome.LEFT_OUT)

    def _converted(
        self, reference: Reference, digest: str, output: str, target: tuple[str, Reference] | None
    ) -> ImageResult:
        with self._converter.opened(f"docker://{reference.text}", self._options.platforms) as opened:
            conversion = self._converter.convert(opened)
            if target is not None:
                self._push(opened, conversion, *target)
            image = SyncedImage(opened.digest, output, _records(opened))
        self._state.put(reference.text, image, due_s=self._due_s)
        self._tell_converted(reference, digest, output, conversion)
        new_layers = sum(layer.is_new for layer in conversion.layers)
        return ImageResult(reference.text, Outcome.CONVERTED, new_layers)

    def _push(self, opened: OpenedSource, conversion: Conversion, scheme: str, target: Reference) -> None:
        plain = frozenset({target.registry} if scheme == "http" else ())
        with open_registry(_with_plain_http(self._options.output, plain)) as client:
            self._converter.write(opened, conversion, RegistryWriter(client, target), tag=target.version)

    def _suddenly_lost(self, wish: Wish, references: list[Reference]) -> set[str]:
        """The images of a pattern whose tags are gone, if they are so many that the list may be incomplete."""
        pattern = TagPattern.parse(wish.name)
        if pattern is None or self._options.accepts_removals:
            return set()
        known = {text for text in self._state.images if pattern.matches(Reference.parse(text))}
        lost = known - {reference.text for reference in references}
        is_much = len(lost) >= _MUCH_AT_LEAST and len(lost) > _MUCH_PART * len(known)
        return lost if is_much or lost == known else set()

    def _schedule(self, wanted: set[str], unclear: list[Wish]) -> None:
        """Images that left the recipe. A line that could not be resolved may have meant any image of its repository; a
        line that is not a name may have meant any image at all."""
        if any(wish.problem for wish in unclear):
            return
        kept = {f"{wish.registry}/{_repository(wish)}" for wish in unclear}
        for text in sorted(set(self._state.images) - wanted):
            reference = Reference.parse(text)
            if reference.name not in kept:
                self._state.drop(text, due_s=self._due_s)
                self._notify({"action": "schedule", "image": text, "status": "done", "due": self._due_s})

    def _removed(self, results: list[ImageResult]) -> tuple[list[str], int]:
        """The images that were removed; a failure is a result like any other, and then nothing was removed."""
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
        the layers that were removed."""
        with self._manager.transaction(wait_s=self._options.converter.wait_s) as transaction:
            removed = [text for text in due if remove_record(transaction.catalogs, image_path(Reference.parse(text)))]
            # Another process may have converted an image with such a layer meanwhile.
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


def _sudden_loss(wish: Wish, lost: set[str]) -> UserError:
    return UserError(
        f"{wish.text} has lost {len(lost)} images, among them {min(lost)}; they stay.",
        hint="The list of tags may be incomplete. If it is complete: mica sync --accept-removals",
    )


def _references(wish: Wish, client: RegistryClient) -> list[Reference]:
    """Raises UserError for a malformed line, and the errors of listing tags."""
    if wish.problem:
        raise UserError(f"{wish.text[:200]!r} is not a wish for an image: {wish.problem}.")
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

    def find(reference: Reference) -> HostConfig:
        found = options.find_hosts(reference)  # which may be that it is blocked
        return plain_http_config(reference.registry) if reference.registry in registries else found

    return dataclasses.replace(options, find_hosts=find)
