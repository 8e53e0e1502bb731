"""Names whose tag is a pattern: `debian:12*`, `reg.example/a/b:v[12].?`. Pure; any thread."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from mica.oci.reference import Reference

_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class TagPattern:
    """`repository` has a tag that means nothing."""

    repository: Reference
    pattern: str

    @classmethod
    def parse(cls, text: str) -> "TagPattern | None":
        """None for a name whose tag is no pattern. Raises UserError for a bad name in front of one."""
        name, colon, pattern = text.rpartition(":")
        if not colon or "/" in pattern or not _WILD & set(pattern):
            return None
        return cls(Reference.parse(name), pattern)

    def matching(self, tags: Iterable[str]) -> list[str]:
        """In alphabetical order."""
        return sorted(tag for tag in set(tags) if fnmatch.fnmatchcase(tag, self.pattern))
