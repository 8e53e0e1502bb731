"""What a host knows of a repository and must not forget: the documents of the newest revision that it verified.

    <state>/trust/<fqrn>       JSON, hex: manifest, certificate, whitelist; mode 0600

With it servers cannot pass off an older revision, and the record counts while no server answers. It is not content, so
it stays when a cache is emptied, moved or copied. A record that cannot be read is an error, not the same as no record:
only a person may remove it. Called by `fetch/client.py`. Any thread, any number of processes.
"""

import contextlib
import json
import os
from pathlib import Path

from mica.errors import IntegrityError
from mica.fetch.documents import Documents
from mica.files import locked_in_turn, mapped_os_errors, replace_file
from mica.repo.manifest import parse_manifest
from mica.repo.trust import NOTHING_KNOWN, KnownRevision


class TrustRecord:
    """`former` is where earlier versions kept the record, in the cache; it is moved from there once."""

    def __init__(self, directory: Path, fqrn: str, *, former: Path) -> None:
        self.path = directory / fqrn
        self._fqrn = fqrn
        self._former = former

    def read(self) -> Documents | None:
        """None if nothing was ever verified here. Raises IntegrityError for a damaged record, UserError for one that
        cannot be read."""
        with mapped_os_errors(f"read what is known of {self._fqrn}"):
            if not self.path.exists():
                self._take_over_former()
            return self._read(self.path)

    def known(self) -> KnownRevision:
        """The part of the record that a newer revision is compared with. Raises as `read`."""
        documents = self.read()
        return NOTHING_KNOWN if documents is None else _revision_of(documents)._replace(where=os.fspath(self.path))

    def keep(self, documents: Documents) -> None:
        """Keep a verified revision, unless a newer one became known meanwhile. It survives a loss of power."""
        with mapped_os_errors(f"remember what was verified of {self._fqrn}"), self._locked():
            known = self._read(self.path)
            if known == documents or (known is not None and _is_newer(known, documents)):
                return
            texts = {name: part.hex() for name, part in documents._asdict().items()}
            replace_file(self.path, json.dumps(texts).encode("ascii"), mode=0o600)

    def _take_over_former(self) -> None:
        """A damaged record of an earlier version stays where it is, and is reported as damaged."""
        documents = self._read(self._former)
        if documents is not None:
            self.keep(documents)
            self._former.unlink(missing_ok=True)

    def _locked(self) -> contextlib.AbstractContextManager[bool]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return locked_in_turn(self.path.parent)

    def _read(self, path: Path) -> Documents | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            values = json.loads(data)
            documents = Documents(*(bytes.fromhex(values[name]) for name in Documents._fields))
            fqrn = parse_manifest(documents.manifest, "Its manifest")[0].fqrn
        except (ValueError, KeyError, TypeError, RecursionError, IntegrityError) as error:
            raise self._damaged(path) from error
        if fqrn != self._fqrn:
            raise self._damaged(path)
        return documents

    def _damaged(self, path: Path) -> IntegrityError:
        return IntegrityError(
            f"This host's trust record of {self._fqrn} is damaged: {path}.",
            hint="Remove it only if you trust the servers: the next revision is then accepted, however old it is.",
        )


def _revision_of(documents: Documents) -> KnownRevision:
    manifest, _ = parse_manifest(documents.manifest, "The known manifest")
    return KnownRevision(manifest.published_at, manifest.revision, documents.whitelist)


def _is_newer(known: Documents, other: Documents) -> bool:
    return _revision_of(known)[:2] > _revision_of(other)[:2]
