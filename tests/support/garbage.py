"""What a collection of garbage has to leave, found without it: catalogs unpacked and read by SQLite itself."""

import os
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.repositories import Repository

from mica.digest import Digest
from mica.publish.manager import ReleaseManager
from mica.publish.transaction import read_history
from mica.repo.history import Tag
from mica.store.base import ObjectStore, read_limited

DAY_S = 86400.0
_IDS = {0: "", 1: "-rmd160", 2: "-shake128"}


def needed_objects(store: ObjectStore, root: str) -> Iterator[str]:
    """Paths of all objects of a revision, by the text of its root catalog; its catalogs have to be there."""
    pending = [root]
    while pending:
        path = f"data/{pending[0][:2]}/{pending[0][2:]}C"
        pending.pop(0)
        yield path
        with tempfile.NamedTemporaryFile() as file:
            file.write(zlib.decompress(read_limited(store, path, 1 << 30)))
            file.flush()
            with sqlite3.connect(file.name) as database:
                rows = database.execute(
                    "SELECT hex(hash), flags, '' FROM catalog WHERE hash NOT NULL AND NOT flags & 128 UNION "
                    "SELECT hex(c.hash), flags, 'P' FROM chunks c JOIN catalog USING (md5path_1, md5path_2)"
                )
                for digest, flags, suffix in rows:
                    text = digest.lower()
                    yield f"data/{text[:2]}/{text[2:]}{_IDS[flags >> 8 & 7]}{suffix}"
                pending += [text for (text,) in database.execute("SELECT sha1 FROM nested_catalogs")]
            database.close()


def missing_objects(store: ObjectStore, root: Digest) -> list[str]:
    return [path for path in needed_objects(store, root.text) if not store.has(path)]


def objects_in(store: ObjectStore) -> set[str]:
    """But for histories: those of the same second as the newest one stay with it."""
    return {file.path for file in store.entries("data/") if not file.path.endswith("H")}


def tags_of(manager: ReleaseManager) -> dict[str, Tag]:
    return read_history(manager.store, manager.head()).tags


def wanted_objects(manager: ReleaseManager, *roots: Digest) -> set[str]:
    """Those of the newest revision, of all tags, of some other revisions, and the documents of the newest one."""
    head = manager.head()
    every = {head.root_catalog, *roots, *(tag.root_catalog for tag in tags_of(manager).values())}
    found = {path for root in every for path in needed_objects(manager.store, root.text)}
    documents = ((head.certificate, "X"), (head.metainfo, "M"))
    return found | {f"data/{digest.text[:2]}/{digest.text[2:]}{suffix}" for digest, suffix in documents if digest}


def check_complete(manager: ReleaseManager, *roots: Digest) -> None:
    """Fails unless the newest revision, all tags and some other revisions have all their objects."""
    head = manager.head()
    for root in {head.root_catalog, *roots, *(tag.root_catalog for tag in tags_of(manager).values())}:
        assert missing_objects(manager.store, root) == []


def make_old(repository: Repository, days: float = 30) -> None:
    """All objects of a storage in a directory, by some days."""
    for path in repository.storage.glob("data/??/*"):
        status = path.stat()
        os.utime(path, (status.st_atime, status.st_mtime - days * DAY_S))


def work_files(home: Path) -> list[Path]:
    """What a collection left behind in a repository's directory, besides its lock and what it remembers."""
    return [path for path in (home / "gc").rglob("*") if path.name not in {"lock", "unwanted.json"}]
