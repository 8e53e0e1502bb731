"""Looking into a repository for `mica repo ls|cat|stat`."""

import contextlib
import os
import stat
import time
from collections.abc import Iterator

from mica.cli.places import Places
from mica.errors import MicaError, NotFoundError, UserError
from mica.fetch.client import RepositoryClient
from mica.fuse.tree import ROOT_INODE, Attributes
from mica.mount.repotree import RepositoryTree
from mica.repo.catalog import NestedCatalog
from mica.repo.manifest import Manifest
from mica.texts import printable, printable_path

_BLOCK = 1 << 20


class Browser:
    """One verified revision of a repository, by paths."""

    def __init__(self, client: RepositoryClient, manifest: Manifest) -> None:
        self.revision = manifest.revision
        self._client = client
        self._manifest = manifest
        root = NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
        self.tree = RepositoryTree(client, root)

    @classmethod
    @contextlib.contextmanager
    def open(cls, places: Places, fqrn: str) -> Iterator["Browser"]:
        with places.open(fqrn) as client:
            yield cls(client, client.update().manifest)

    def entries(self, path: bytes) -> list[tuple[bytes, dict[str, object]]]:
        attributes = self._find(path)
        if not stat.S_ISDIR(attributes.mode):
            name = path.rpartition(b"/")[2]
            return [(name, self._facts(name, attributes))]
        with self._errors(path):
            children = sorted(self.tree.children(attributes.inode))
        return [(child.name, self._facts(child.name, child.attributes)) for child in children]

    def read(self, path: bytes) -> Iterator[bytes]:
        """The content of a file; a symbolic link is followed inside the repository."""
        attributes = self._find(path, follow=True)
        if not stat.S_ISREG(attributes.mode):
            raise UserError(f"{printable_path(path)} is not a regular file.")
        with self._errors(path):
            file = self.tree.open(attributes.inode)
            with contextlib.closing(file):
                for offset in range(0, attributes.size, _BLOCK):
                    yield file.read(offset, _BLOCK)

    def stat(self, path: bytes) -> dict[str, object]:
        attributes = self._find(path)
        facts = {"path": printable_path(path), **self._facts(path.rpartition(b"/")[2], attributes)}
        with self._errors(path):
            facts |= self.tree.storage(attributes.inode)
            xattrs = self.tree.xattrs(attributes.inode)
        facts["xattrs"] = {printable(key): value.hex() for key, value in sorted(xattrs.items())}
        return facts

    def _find(self, path: bytes, *, follow: bool = False) -> Attributes:
        pending = [part for part in path.split(b"/") if part]
        trail = [ROOT_INODE]
        links_left = 40
        with self._errors(path):
            attributes = self.tree.attributes(ROOT_INODE)
            while pending:
                name = pending.pop(0)
                if name in {b"", b"."}:
                    continue
                if name == b"..":
                    trail = trail[:-1] or [ROOT_INODE]
                    attributes = self.tree.attributes(trail[-1])
                    continue
                attributes = self.tree.lookup(trail[-1], name)
                if stat.S_ISLNK(attributes.mode) and (pending or follow):
                    links_left -= 1
                    if not links_left:
                        raise UserError(f"{printable(path)} leads through too many symbolic links.")
                    target = self.tree.readlink(attributes.inode)
                    trail = [ROOT_INODE] if target.startswith(b"/") else trail
                    pending = target.split(b"/") + pending
                    attributes = self.tree.attributes(trail[-1])
                    continue
                if stat.S_ISDIR(attributes.mode):
                    trail = [*trail, attributes.inode]
                elif pending:
                    raise NotADirectoryError
        return attributes

    @contextlib.contextmanager
    def _errors(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFoundError(f"{printable_path(path)} is not in {self._manifest.fqrn}.") from error
        except NotADirectoryError as error:
            raise NotFoundError(f"A part of {printable(path)} in {self._manifest.fqrn} is not a directory.") from error
        except OSError as error:
            if isinstance(error.__cause__, MicaError):
                raise error.__cause__ from error
            raise UserError(f"{printable_path(path)} cannot be read: {error.strerror}.") from error

    def _facts(self, name: bytes, attributes: Attributes) -> dict[str, object]:
        shown = printable(name)
        facts: dict[str, object] = {
            "name": shown,
            "mode": stat.filemode(attributes.mode),
            "links": attributes.links,
            "uid": attributes.uid,
            "gid": attributes.gid,
            "size": attributes.size,
            "mtime": _moment(attributes.mtime_s, attributes.mtime_ns),
        }
        if stat.S_ISLNK(attributes.mode):
            facts["target"] = printable(self.tree.readlink(attributes.inode))
            shown = f"{shown} -> {facts['target']}"
        elif stat.S_ISCHR(attributes.mode) or stat.S_ISBLK(attributes.mode):
            facts["device"] = f"{os.major(attributes.rdev)}:{os.minor(attributes.rdev)}"
        return facts | {"shown": shown}


def _moment(seconds: int, nanoseconds: int) -> str:
    try:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError):
        return f"{seconds}.{nanoseconds:09d}"
    return f"{text}.{nanoseconds:09d}Z"
