"""What a collection is about to do, or did, in numbers. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mica.collect.needs import Kind, Needs
from mica.collect.removals import Removals
from mica.collect.sweeping import ORPHAN, Sum, Survey


class ReportLine(NamedTuple):
    """One thing that goes, or waits until `due_s`. `sum`: what only it needs; of images and layers this is removed from
    the storage only when the last revision that has them goes."""

    kind: str
    name: str
    reason: str
    is_due: bool
    due_s: float
    sum: Sum


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """`is_done`: it was done, and not only planned."""

    fqrn: str
    revision: int
    removals: Removals
    needs: Needs
    survey: Survey
    warnings: tuple[str, ...]
    is_done: bool

    @property
    def kept(self) -> Sum:
        return _total(self.survey.kept.values())

    @property
    def condemned(self) -> Sum:
        """What nothing keeps and is old enough; `survey.removed` is what really went."""
        return _total(self.survey.condemned.values())

    @property
    def young(self) -> Sum:
        return self.survey.young

    def lines(self) -> Iterator[ReportLine]:
        """Images, layers, tags, revisions, and objects of no revision."""
        now = self.removals.now
        of_images: dict[str, Sum] = {}
        layers = []
        for place, need in enumerate(self.needs.layers):
            total = self.survey.kept.get(self.needs.number_of_layer(place), Sum())
            of_images.setdefault(need.image, Sum()).add(total)
            reason = "only an unwanted image has it" if need.image else "no image has it"
            layers.append(ReportLine("layer", need.name, reason, need.due_s <= now, need.due_s, total))
        for image in self.removals.images:
            total = of_images.get(image.reference, Sum())
            yield ReportLine("image", image.reference, image.reason, image.due_s <= now, image.due_s, total)
        yield from layers
        roots = {need.root for need in self.needs.condemned}
        for tag in self.removals.tags:
            if tag.root_catalog not in roots:
                yield ReportLine("tag", tag.name, "automatic and old; its revision stays", True, 0.0, Sum())
        for place, need in enumerate(self.needs.condemned):
            total = self.survey.condemned.get(self.needs.number_of_condemned(place), Sum())
            if need.kind is Kind.TAG:
                yield ReportLine("tag", need.name, "automatic and old", True, 0.0, total)
            else:
                name = need.name if need.revision is None else str(need.revision)
                reason = "its catalog is gone" if need.revision is None else "replaced too long ago"
                yield ReportLine("revision", name, reason, True, 0.0, total)
        orphans = self.survey.condemned.get(ORPHAN, Sum())
        if orphans.objects:
            yield ReportLine("objects", "", "no revision has them", True, 0.0, orphans)

    def to_json(self) -> dict[str, Any]:
        """Times are seconds since 1970."""
        lines = list(self.lines())
        return {
            "repository": self.fqrn,
            "revision": self.revision,
            "dry_run": not self.is_done,
            "items": [
                {
                    "kind": line.kind, "name": line.name, "reason": line.reason, "due": int(line.due_s),
                    "is_due": line.is_due, "objects": line.sum.objects, "bytes": line.sum.bytes,
                }
                for line in lines
            ],
            "images": sum(line.kind == "image" and line.is_due for line in lines),
            "layers": sum(line.kind == "layer" and line.is_due for line in lines),
            "tags": len(self.removals.tags),
            "revisions": sum(line.kind == "revision" for line in lines),
            "kept_revisions": len(self.needs.revisions),
            "kept": _json(self.kept),
            "condemned": _json(self.condemned),
            "removed": _json(self.survey.removed),
            "young": _json(self.young),
            "other_files": self.survey.others,
            "warnings": list(self.warnings),
        }  # fmt: skip


def _total(sums: Any) -> Sum:
    total = Sum()
    for one in sums:
        total.add(one)
    return total


def _json(total: Sum) -> dict[str, int]:
    return {"objects": total.objects, "bytes": total.bytes}
