"""Tar archives for tests: by the standard library for what it can write, by hand for what nobody should."""

import io
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from mica.tarstream import DEFAULT_LIMITS, Kind, TarEntry, TarLimits, read_tar

BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: bytes = b"file",
    *,
    size: int | bytes = 0,
    type_flag: bytes = b"0",
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    gid: bytes = b"0000000\0",
    mtime: bytes = b"00000000000\0",
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major: bytes = b"0000000\0",
    minor: bytes = b"0000000\0",
    prefix: bytes = b"",
    tail: bytes | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One header block with a right checksum unless one is given; `tail` replaces everything from byte 345 on."""
    size_field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = name.ljust(100, b"\0") + mode + uid + gid + size_field + mtime + b" " * 8 + type_flag
    block += link.ljust(100, b"\0") + magic + bytes(64) + major + minor
    block += (prefix if tail is None else tail).ljust(167, b"\0")
    assert len(block) == BLOCK
    return block[:148] + (checksum or b"%06o\0 " % sum(block)) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes = b"file", data: bytes = b"", **fields: bytes) -> bytes:
    return header(name, size=len(data), **fields) + padded(data)


def pax_record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    total = rest + len(str(rest))
    total = rest + len(str(total))
    record = b"%d %s=%s\n" % (total, key, value)
    assert len(record) == total
    return record


def pax(records: Iterable[tuple[bytes, bytes]], *, type_flag: bytes = b"x") -> bytes:
    return member(b"././@PaxHeader", b"".join(pax_record(*record) for record in records), type_flag=type_flag)


def base256(number: int, width: int) -> bytes:
    field = bytearray((number % (1 << (8 * width - 1))).to_bytes(width, "big"))
    field[0] |= 0x80
    return bytes(field)


def entries(archive: bytes, *, limits: TarLimits = DEFAULT_LIMITS, require_end: bool = True) -> list[TarEntry]:
    """All members; their data is gone."""
    return list(read_tar(io.BytesIO(archive), limits=limits, require_end=require_end))


def contents(archive: bytes) -> list[tuple[bytes, bytes]]:
    return [(entry.name, entry.data()) for entry in read_tar(io.BytesIO(archive), require_end=True)]


def file_entry(name: bytes, size: int = 0, **attributes: object) -> TarEntry:
    return TarEntry(name, size=size, **attributes)  # type: ignore[arg-type]


def link_entry(name: bytes, target: bytes, kind: Kind = Kind.HARDLINK) -> TarEntry:
    return TarEntry(name, kind, link=target)


def by_tarfile(members: Callable[[tarfile.TarFile], None], archive_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=archive_format) as archive:
        members(archive)
    return buffer.getvalue()


def by_program(program: str, directory: Path, *options: str) -> bytes:
    """What GNU tar or bsdtar makes of a directory."""
    run = subprocess.run([program, *options, "-cf", "-", "-C", str(directory), "."], capture_output=True, check=True)
    return run.stdout
