"""Writes an OCI image layout with gzip layers as a build tool would; independent of mica, which is tested with it.

The layers are PAX tars sorted by name, with nanosecond times, hard links and extended attributes, compressed like
`gzip -6` in blocks by several threads (as pigz does; the result is one ordinary gzip member). Same entries, same bytes.
"""

import hashlib
import io
import json
import os
import stat
import struct
import tarfile
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20
_WINDOW_BYTES = 1 << 15
_LEVEL = 6
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a layer. `mode` includes the file type; a regular file's content is `content`, or the file `source`.

    `hardlink` names an earlier entry of the same layer."""

    name: str
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    size: int = 0
    target: str = ""
    hardlink: str = ""
    content: bytes = b""
    source: Path | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in the layout: `digest` of the compressed, `diff_id` of the plain tar."""

    digest: str
    diff_id: str
    compressed_bytes: int
    tar_bytes: int
    content_bytes: int
    entries: int
    created_by: str

    @property
    def descriptor(self) -> dict[str, Any]:
        media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
        return {"mediaType": media_type, "digest": self.digest, "size": self.compressed_bytes}


class _GzipFile(io.RawIOBase):
    """A write-only file that compresses blocks in threads; at most `threads` + 2 blocks wait."""

    def __init__(self, out: io.BufferedWriter, pool: ThreadPoolExecutor, threads: int) -> None:
        super().__init__()
        self._out, self._pool, self._most = out, pool, threads + 2
        self._block, self._window = bytearray(), b""
        self._waiting: deque[Future[bytes]] = deque()
        self._plain, self._compressed, self._crc = hashlib.sha256(), hashlib.sha256(), 0
        self.plain_bytes = self.compressed_bytes = 0
        self._put(_GZIP_HEADER)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.plain_bytes + len(self._block)

    def write(self, data: Any, /) -> int:
        self._block += data
        while len(self._block) >= _BLOCK_BYTES:
            self._submit(bytes(self._block[:_BLOCK_BYTES]), last=False)
            del self._block[:_BLOCK_BYTES]
        return len(data)

    def finish(self) -> tuple[str, str]:
        """End the gzip member; returns the digests of the compressed and of the plain bytes."""
        self._submit(bytes(self._block), last=True)
        self._block.clear()
        while self._waiting:
            self._put(self._waiting.popleft().result())
        self._put(struct.pack("<II", self._crc, self.plain_bytes & 0xFFFFFFFF))
        return f"sha256:{self._compressed.hexdigest()}", f"sha256:{self._plain.hexdigest()}"

    def _submit(self, block: bytes, *, last: bool) -> None:
        self._plain.update(block)
        self._crc = zlib.crc32(block, self._crc)
        self.plain_bytes += len(block)
        self._waiting.append(self._pool.submit(_deflate, block, self._window, last=last))
        self._window = block[-_WINDOW_BYTES:]
        if len(self._waiting) > self._most:
            self._put(self._waiting.popleft().result())

    def _put(self, data: bytes) -> None:
        self._compressed.update(data)
        self.compressed_bytes += len(data)
        self._out.write(data)


def _deflate(block: bytes, window: bytes, *, last: bool) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=window)
    return compressor.compress(block) + compressor.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def write_layer(layout: Path, entries: Iterable[Entry], *, created_by: str, threads: int = 2) -> Layer:
    """Write the entries, in the order given, as a blob of the layout."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    count = content_bytes = 0
    temporary = blobs / f".layer.{os.getpid()}"
    with temporary.open("wb") as out, ThreadPoolExecutor(threads) as pool:
        packed = _GzipFile(out, pool, threads)
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for entry in entries:
                _add(tar, entry)
                count += 1
                content_bytes += _content_size(entry)
        digest, diff_id = packed.finish()
    temporary.rename(blobs / digest.removeprefix("sha256:"))
    return Layer(digest, diff_id, packed.compressed_bytes, packed.plain_bytes, content_bytes, count, created_by)


def _content_size(entry: Entry) -> int:
    if not stat.S_ISREG(entry.mode) or entry.hardlink:
        return 0
    return entry.size if entry.source else len(entry.content)


_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def _add(tar: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.name)
    info.type = _TYPES[stat.S_IFMT(entry.mode)]
    info.mode = stat.S_IMODE(entry.mode)
    info.uid, info.gid = entry.uid, entry.gid
    info.linkname = entry.target
    info.devmajor, info.devminor = os.major(entry.rdev), os.minor(entry.rdev)
    info.size = _content_size(entry)
    headers: dict[str, str] = {}
    seconds, ns = divmod(entry.mtime_ns, _NS)
    info.mtime = seconds
    if ns or seconds < 0:
        info.mtime = max(seconds, 0)
        headers["mtime"] = _format_time(entry.mtime_ns)
    for name, value in sorted(entry.xattrs.items()):
        headers[f"SCHILY.xattr.{name}"] = os.fsdecode(value)
    info.pax_headers = headers
    if entry.hardlink:
        info.type, info.linkname, info.size = tarfile.LNKTYPE, entry.hardlink, 0
    if info.size and entry.source:
        with entry.source.open("rb") as content:
            tar.addfile(info, content)
    else:
        tar.addfile(info, io.BytesIO(entry.content) if info.size else None)


def _format_time(time_ns: int) -> str:
    sign = "-" if time_ns < 0 else ""
    seconds, ns = divmod(abs(time_ns), _NS)
    return f"{sign}{seconds}.{ns:09d}".rstrip("0").rstrip(".")


def write_image(layout: Path, layers: list[Layer], *, tag: str, created: str, config: Mapping[str, Any]) -> None:
    """Complete the layout with configuration, manifest and index."""
    image_config = {
        "created": created,
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": created, "created_by": layer.created_by} for layer in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _write_json(layout, image_config, "application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor for layer in layers],
    }
    descriptor = _write_json(layout, manifest, manifest["mediaType"])
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
    descriptor["platform"] = {"architecture": "amd64", "os": "linux"}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    }
    (layout / "index.json").write_bytes(_json_bytes(index))
    (layout / "oci-layout").write_bytes(_json_bytes({"imageLayoutVersion": "1.0.0"}))


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _write_json(layout: Path, value: Any, media_type: Any) -> dict[str, Any]:
    data = _json_bytes(value)
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
