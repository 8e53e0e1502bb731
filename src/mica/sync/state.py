"""The images that a recipe brought into a repository so far, kept in `<home>/sync/<name>.json` between rounds.

    {"version": 1,
     "images": {"<reference>": {"digest": "sha256:…", "output": "…", "records": ["<reference>", …]}},
     "leaving": {"<reference of a record>": <time>},       removed or superseded, to be forgotten at that time
     "unused": {"<hex of a layer>": <time>}}               since when no record names it

If the file is lost, the next round looks at every image; no image is lost. One thread.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mica.errors import UserError
from mica.files import mapped_os_errors, replace_file

STATE_DIRECTORY = "sync"
"""Its name in a repository's directory (`ReleaseManager.directory`)."""
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SyncedImage:
    """`digest` is that of the name upstream; `output` is the name that the thin image was pushed to, or empty."""

    digest: str
    output: str
    records: tuple[str, ...]


@dataclass(slots=True)
class SyncState:
    """Times are seconds since 1970."""

    images: dict[str, SyncedImage] = field(default_factory=dict)
    leaving: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)

    def put(self, reference: str, image: SyncedImage, *, due_s: int) -> None:
        """Remember an image as it is now; records that it no longer has are removed when they are due."""
        old = self.images.get(reference)
        self.images[reference] = image
        if old is not None:
            self._leave(old.records, due_s)

    def drop(self, reference: str, *, due_s: int) -> None:
        """The recipe no longer wishes for it."""
        self._leave(self.images.pop(reference).records, due_s)

    def _leave(self, records: tuple[str, ...], due_s: int) -> None:
        kept = self.wanted_records
        for record in records:
            if record not in kept:
                self.leaving.setdefault(record, due_s)

    @property
    def wanted_records(self) -> set[str]:
        return {record for image in self.images.values() for record in image.records}

    def due(self, now_s: int) -> list[str]:
        """The records that are due; records that are wanted again are no longer scheduled."""
        for record in self.wanted_records & self.leaving.keys():
            del self.leaving[record]
        return sorted(record for record, time_s in self.leaving.items() if time_s <= now_s)

    def forget(self, records: list[str], layers: set[str]) -> None:
        """The repository no longer has these records."""
        for record in records:
            self.leaving.pop(record, None)
        self.unused = {layer: at for layer, at in self.unused.items() if layer not in layers}


def read_state(path: Path) -> SyncState:
    """Raises UserError for a file that is not a state."""
    with mapped_os_errors(f"read {path}"):
        if not path.exists():
            return SyncState()
        data = path.read_bytes()
    try:
        document: dict[str, Any] = json.loads(data)
        if document["version"] != _VERSION:
            raise ValueError("another version")
        images = {
            str(reference): SyncedImage(str(one["digest"]), str(one["output"]), tuple(map(str, one["records"])))
            for reference, one in document["images"].items()
        }
        leaving, unused = ({str(k): int(v) for k, v in document[name].items()} for name in ("leaving", "unused"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not the state of a sync.", hint="Remove it: the next round checks every image, none is lost."
        ) from error
    return SyncState(images, leaving, unused)


def write_state(path: Path, state: SyncState) -> None:
    document = {
        "version": _VERSION,
        "images": {
            reference: {"digest": one.digest, "output": one.output, "records": list(one.records)}
            for reference, one in sorted(state.images.items())
        },
        "leaving": state.leaving,
        "unused": state.unused,
    }
    with mapped_os_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(document, indent=1).encode("utf-8") + b"\n")
