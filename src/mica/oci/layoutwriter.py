"""Writing OCI image layouts: a directory, or a tar that is the same bytes for the same images.

Blobs are written first, `index.json` last and by rename: a reader sees the old images, or the old ones and the new one.
Several processes may write into one directory. Several threads may use one writer.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import secrets
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from mica.files import mapped_os_errors, owned_fd, replace_file, sync_directory, write_all
from mica.oci.blobdigest import blob_digest, is_digest
from mica.oci.documents import DOCUMENT_LIMIT_BYTES
from mica.oci.layerstream import READ_SIZE
from mica.oci.layout import INDEX_NAME, MARKER, MARKER_NAME, DirectoryFiles, blob_name, layout_in_tar, tag_of
from mica.oci.models import REF_NAME, Descriptor, Index, format_index, parse_index
from mica.oci.platforms import Platform
from mica.oci.tarindex import TarIndex, open_tar
from mica.streams import Readable

_BLOB_PREFIX = "blobs/"


class LayoutWriter:
    """Adds images to a layout directory, which is made if it is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with mapped_os_errors(f"write the image layout {path}"):
            (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            if not (path / MARKER_NAME).exists():
                replace_file(path / MARKER_NAME, MARKER)
            if not (path / INDEX_NAME).exists():
                self._update_index(())

    def put_blob(self, content: bytes | Readable, media_type: str) -> Descriptor:
        """Store bytes, or a stream to its end, under their sha256."""
        with mapped_os_errors(f"write the image layout {self._path}"):
            if isinstance(content, bytes):
                return self._put_bytes(content, media_type)
            return self._put_stream(content, media_type)

    def _put_bytes(self, data: bytes, media_type: str) -> Descriptor:
        descriptor = Descriptor(media_type, blob_digest(data), len(data))
        replace_file(self._path / blob_name(descriptor.digest), data)
        return descriptor

    def _put_stream(self, stream: Readable, media_type: str) -> Descriptor:
        temporary = self._path / "blobs" / f".{secrets.token_hex(8)}.tmp"
        try:
            digest, size = _copy_hashed(stream, temporary)
            os.replace(temporary, self._path / blob_name(digest))
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(self._path / "blobs" / "sha256")
        return Descriptor(media_type, digest, size)

    def put_image(self, manifest: Descriptor, *, tag: str = "", platform: Platform | None = None) -> None:
        """List a stored manifest or index. Another image that had its tag loses it; the others stay."""
        annotations = dict(manifest.annotations) | ({REF_NAME: tag} if tag else {})
        entry = dataclasses.replace(manifest, annotations=annotations, platform=platform or manifest.platform)
        with mapped_os_errors(f"write the image layout {self._path}"):
            self._update_index((entry,))

    def _update_index(self, entries: tuple[Descriptor, ...]) -> None:
        # The directory itself is locked: a lock file would be a stray file in a layout.
        with self._lock, owned_fd(os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            old = self._read_index()
            kept = tuple(one for one in old.manifests if not any(_is_replaced(one, entry) for entry in entries))
            extra = {"annotations": dict(old.annotations)} if old.annotations else {}
            replace_file(self._path / INDEX_NAME, format_index(kept + entries, **extra))

    def _read_index(self) -> Index:
        if not (self._path / INDEX_NAME).exists():
            return Index((), "")
        data = DirectoryFiles(self._path).read(INDEX_NAME, limit_bytes=DOCUMENT_LIMIT_BYTES)
        return parse_index(data, what=f"{INDEX_NAME} of {self._path}")


def _is_replaced(old: Descriptor, new: Descriptor) -> bool:
    if tag_of(old) != tag_of(new) or old.platform != new.platform:
        return False
    return bool(tag_of(new)) or old.digest == new.digest


def _copy_hashed(stream: Readable, path: Path) -> tuple[str, int]:
    hasher, size = hashlib.sha256(), 0
    with owned_fd(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)) as fd:
        while data := stream.read(READ_SIZE):
            hasher.update(data)
            size += len(data)
            write_all(fd, data)
        os.fsync(fd)
    return f"sha256:{hasher.hexdigest()}", size


@contextlib.contextmanager
def open_layout_archive_writer(path: Path) -> Iterator[LayoutWriter]:
    """Add images to an OCI archive. It appears, or is replaced, at the end of the block, but not after an exception.

    Needs room for the archive a second time, in its directory.
    """
    with contextlib.ExitStack() as stack:
        with mapped_os_errors(f"write {path}"):
            place = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
            staging = Path(stack.enter_context(place)) / "layout"
            staging.mkdir()
        if path.exists():
            with open_tar(path) as index:
                _unpack(index, staging)
        yield LayoutWriter(staging)
        with mapped_os_errors(f"write {path}"):
            _pack(staging, staging.with_name("archive"))
            os.replace(staging.with_name("archive"), path)
            sync_directory(path.parent)


def _unpack(index: TarIndex, staging: Path) -> None:
    """The index and the blobs that it refers to; only names made of digests become paths."""
    layout = layout_in_tar(index)
    (staging / INDEX_NAME).write_bytes(layout.index.raw)
    for name in index.places:
        algorithm, _, text = name.removeprefix(_BLOB_PREFIX).partition("/")
        if name != f"{_BLOB_PREFIX}{algorithm}/{text}" or not is_digest(f"{algorithm}:{text}"):
            continue
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        with index.open(name) as source, (staging / name).open("wb") as target:
            for data in iter(lambda: source.read(READ_SIZE), b""):
                target.write(data)


def _pack(layout: Path, archive: Path) -> None:
    """Sorted names, no times, no owners: equal layouts become equal archives."""
    with archive.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(layout.rglob("*")):
                _add_member(tar, path, str(path.relative_to(layout)))
        file.flush()
        os.fsync(file.fileno())


def _add_member(tar: tarfile.TarFile, path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    if path.is_dir():
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(member)
        return
    member.mode, member.size = 0o644, path.stat().st_size
    with path.open("rb") as file:
        tar.addfile(member, file)
