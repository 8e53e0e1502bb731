"""OCI image layouts: a directory, or the same in a tar (`oci-archive`). Reading is here, writing in layoutwriter.py.

    oci-layout                 {"imageLayoutVersion": "1.0.0"}
    index.json                 descriptors of images; a tag is the annotation org.opencontainers.image.ref.name
    blobs/sha256/<hex>         manifests, configurations, layers

Names inside are made of validated digests only. Any thread.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mica.errors import NotFoundError, UserError
from mica.files import mapped_os_errors
from mica.oci.blobdigest import split_digest
from mica.oci.documents import DOCUMENT_LIMIT_BYTES
from mica.oci.models import CONTAINERD_NAME, REF_NAME, Descriptor, Index, check_document, parse_index
from mica.oci.tarindex import TarIndex, open_regular, open_tar
from mica.streams import Readable

INDEX_NAME = "index.json"
MARKER_NAME = "oci-layout"
MARKER = b'{"imageLayoutVersion":"1.0.0"}'


class LayoutFiles(Protocol):
    """The files of a layout; names are relative and safe. `TarIndex` is one."""

    def read(self, name: str, *, limit_bytes: int) -> bytes: ...

    def open(self, name: str) -> contextlib.AbstractContextManager[Readable]: ...


def blob_name(digest: str) -> str:
    """The place of a blob; the digest has been checked."""
    algorithm, text = split_digest(digest)
    return f"blobs/{algorithm}/{text}"


class DirectoryFiles:
    """A layout that is a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        with self.open(name) as stream:
            data = b"".join(iter(lambda: stream.read(limit_bytes + 1), b""))
        if len(data) > limit_bytes:
            raise UserError(f"{self._path / name} has more than {limit_bytes} bytes.")
        return data

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Readable]:
        path = self._path / name
        with os.fdopen(open_regular(path), "rb", buffering=0) as file:
            yield _MappedFile(file, path)


class _MappedFile:
    """A file that raises errors with sentences."""

    def __init__(self, file: Readable, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, size: int, /) -> bytes:
        with mapped_os_errors(f"read {self._path}"):
            return self._file.read(size)


class Layout:
    """Images in a layout. `name` is its name in messages."""

    def __init__(self, files: LayoutFiles, *, name: str) -> None:
        self._files = files
        self.name = name
        data = files.read(INDEX_NAME, limit_bytes=DOCUMENT_LIMIT_BYTES)
        self.index: Index = parse_index(data, what=f"{INDEX_NAME} of {name}")

    @property
    def tags(self) -> list[str]:
        return sorted({tag for one in self.index.manifests if (tag := tag_of(one))})

    def find(self, tag: str) -> tuple[Descriptor, ...]:
        """The descriptors with a tag, or all where no tag is given; several only if they are for several platforms."""
        found = tuple(one for one in self.index.manifests if not tag or tag in _names_of(one))
        # A document beside an image, such as its signature, does not make the choice ambiguous.
        found = tuple(one for one in found if not one.is_artifact) or found
        if not found:
            wanted = f"no image {tag[:200]!r}" if tag else "no image at all"
            raise NotFoundError(f"{self.name} holds {wanted}.", hint=self._tags_hint())
        if len({one.digest for one in found}) > 1 and any(one.platform is None for one in found):
            raise UserError(f"{self.name} holds {len(found)} images.", hint=self._tags_hint())
        return found

    def _tags_hint(self) -> str:
        tags = self.tags
        more = f" and {len(tags) - 20} more" if len(tags) > 20 else ""
        return f"Choose one of: {', '.join(tags[:20])}{more}" if tags else "None of its images has a tag."

    def read_document(self, descriptor: Descriptor, *, what: str) -> bytes:
        """A manifest or configuration, verified."""
        data = self._files.read(blob_name(descriptor.digest), limit_bytes=DOCUMENT_LIMIT_BYTES)
        return check_document(data, descriptor, what=what)

    def open_blob(self, descriptor: Descriptor) -> contextlib.AbstractContextManager[Readable]:
        """The stored bytes, not verified."""
        return self._files.open(blob_name(descriptor.digest))


def tag_of(descriptor: Descriptor) -> str:
    return descriptor.annotations.get(REF_NAME, "")


def _names_of(descriptor: Descriptor) -> set[str]:
    return {tag_of(descriptor), descriptor.annotations.get(CONTAINERD_NAME, "")}


@contextlib.contextmanager
def open_layout(path: Path) -> Iterator[Layout]:
    """A layout in a directory. Raises NotFoundError where there is none."""
    if not path.is_dir():
        raise NotFoundError(f"There is no directory {path}.")
    if not (path / INDEX_NAME).exists():
        raise NotFoundError(f"{path} is not an OCI image layout: it has no {INDEX_NAME}.")
    yield Layout(DirectoryFiles(path), name=str(path))


@contextlib.contextmanager
def open_layout_archive(path: Path) -> Iterator[Layout]:
    """A layout in a tar, plain or gzip."""
    with open_tar(path) as index:
        yield layout_in_tar(index)


def layout_in_tar(index: TarIndex) -> Layout:
    if index.find(INDEX_NAME) is None:
        raise NotFoundError(f"{index.path} is not an OCI archive: it has no {INDEX_NAME}.")
    return Layout(index, name=str(index.path))
