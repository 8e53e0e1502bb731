"""A blacklist refuses signed content: certificates by fingerprint, and revisions below a number. Pure.

    AB:CD:…            a certificate, as on a whitelist (docs/format/manifest.md)
    <FQRN N            every revision of this repository below N

One entry a line. Lines that begin with `#` are comments, and so is the text after a blank or `#` behind a fingerprint.
The stock client reads the same file, /etc/cvmfs/blacklist.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from mica.errors import UserError
from mica.repo.signing import fingerprint_algorithm

_REVISION: Final = re.compile(r"<([^\s<]+)[ \t]+(\d{1,18})[ \t]*(?:#.*)?", re.ASCII)
_END_OF_FINGERPRINT: Final = re.compile(r"[ \t#]")


@dataclass(frozen=True, slots=True)
class Blacklist:
    """`fingerprints` as they are written; `revisions` is, by repository, the first that is not refused."""

    fingerprints: frozenset[str] = frozenset()
    revisions: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def oldest(self, fqrn: str) -> int:
        return self.revisions.get(fqrn, 0)


def parse_blacklist(data: bytes, what: str) -> Blacklist:
    """Raises UserError for a line that is neither: a line that is passed over would refuse nothing."""
    fingerprints: set[str] = set()
    revisions: dict[str, int] = {}
    for number, line in enumerate(data.decode("ascii", "replace").split("\n"), 1):
        text = line.strip(" \t\r")
        if not text or text.startswith("#"):
            continue
        revision = parse_revision_line(text)
        if revision is not None:
            fqrn, oldest = revision
            revisions[fqrn] = max(oldest, revisions.get(fqrn, 0))
            continue
        found = fingerprint_of_line(text)
        if fingerprint_algorithm(found) is None:
            raise UserError(f"Line {number} of {what} is neither a fingerprint nor '<NAME NUMBER'.")
        fingerprints.add(found)
    return Blacklist(frozenset(fingerprints), MappingProxyType(revisions))


def joined(lists: Iterable[Blacklist]) -> Blacklist:
    """Their union: everything that one of them refuses is refused."""
    fingerprints: set[str] = set()
    revisions: dict[str, int] = {}
    for one in lists:
        fingerprints |= one.fingerprints
        for fqrn, oldest in one.revisions.items():
            revisions[fqrn] = max(oldest, revisions.get(fqrn, 0))
    return Blacklist(frozenset(fingerprints), MappingProxyType(revisions))


def parse_revision_line(line: str) -> tuple[str, int] | None:
    """Parses `<FQRN N` into the repository and its first revision that is not refused."""
    match = _REVISION.fullmatch(line)
    return None if match is None else (match[1], int(match[2]))


def fingerprint_of_line(line: str) -> str:
    """Without the comment."""
    return _END_OF_FINGERPRINT.split(line, maxsplit=1)[0]
