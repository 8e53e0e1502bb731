"""Who needs objects, as numbers for the marks: the lower the number, the more it counts. One thread.

0                   the newest revision, and tags
1 …                 layers of the newest revision that nobody wants
1 << 20             predecessors that stay, and what was begun lately
1 + (1 << 20) …     revisions that nothing keeps, the newest first
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from mica.digest import Digest
from mica.errors import UserError

_OLDER: Final = 1 << 20


class Kind(StrEnum):
    """What goes, or will go."""

    LAYER = "layer"
    REVISION = "revision"
    TAG = "tag"


@dataclass(slots=True)
class Need:
    """One of them. `name`: a layer's hex, a tag, or a root catalog. `image`: the unwanted one that has the layer."""

    kind: Kind
    name: str
    image: str = ""
    due_s: float = 0.0
    root: Digest | None = None
    revision: int | None = None
    published_s: int | None = None


@dataclass(slots=True)
class Needs:
    """`revisions`: root catalogs of all revisions that stay."""

    layers: list[Need] = field(default_factory=list)
    condemned: list[Need] = field(default_factory=list)
    revisions: set[Digest] = field(default_factory=set)

    @property
    def wanted(self) -> int:
        return 0

    @property
    def older(self) -> int:
        return _OLDER

    def add(self, need: Need) -> int:
        """Its number. Raises UserError for more layers than have numbers."""
        if need.kind is not Kind.LAYER:
            self.condemned.append(need)
            return _OLDER + len(self.condemned)
        if len(self.layers) >= _OLDER - 1:
            raise UserError(f"More than {_OLDER - 1} layers are unwanted.", hint="Collect with a shorter --keep-days.")
        self.layers.append(need)
        return len(self.layers)

    def keeps(self, owner: int) -> bool:
        """Whether what this one needs stays in this collection."""
        return owner <= _OLDER

    def keep_revision(self, root: Digest) -> None:
        self.revisions.add(root)

    def keeps_revision(self, root: Digest) -> bool:
        return root in self.revisions

    def number_of_layer(self, place: int) -> int:
        """The number of the layer at a place in `layers`."""
        return place + 1

    def number_of_condemned(self, place: int) -> int:
        """The number of the one at a place in `condemned`."""
        return _OLDER + 1 + place
