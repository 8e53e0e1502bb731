"""Members we write are read as we meant them, by our reader and by others."""

import io
import tarfile

import pytest
from tests.support.tars import entries

from mica.engine.tarwriter import END, format_member, padding
from mica.errors import UserError
from mica.tarstream import Kind, TarEntry

CASES = [
    TarEntry(b"file", size=3, mode=0o4755, uid=1, gid=2, mtime_s=1_600_000_000),
    TarEntry(b"directory", Kind.DIRECTORY, 0o1777),
    TarEntry(b"x" * 100, size=0),
    TarEntry(b"d/" * 150 + b"long"),
    TarEntry("umlaut-ä".encode()),
    TarEntry(b"not-utf8-\xff"),
    TarEntry(b"link", Kind.SYMLINK, 0o777, link=b"../" * 60 + b"target"),
    TarEntry(b"hard", Kind.HARDLINK, link=b"file"),
    TarEntry(b"null", Kind.CHARACTER, 0o666, device_major=1, device_minor=3),
    TarEntry(b"disk", Kind.BLOCK, 0o660, device_major=259, device_minor=65537),
    TarEntry(b"fifo", Kind.FIFO),
    TarEntry(b"ids", uid=2**31, gid=2**32 - 2, mtime_s=-5),
    TarEntry(b"future", mtime_s=2**34),
    TarEntry(b"caps", xattrs={b"security.capability": bytes(range(20)), b"user.empty": b""}),
]
FIELDS = ("name", "kind", "mode", "uid", "gid", "size", "mtime_s", "link", "device_major", "device_minor", "xattrs")


@pytest.mark.parametrize("entry", CASES, ids=lambda entry: entry.name[:10].decode("utf-8", "replace"))
def test_read_back_it_is_the_same(entry: TarEntry) -> None:
    content = bytes(entry.size)
    (read,) = entries(format_member(entry) + content + padding(len(content)) + END)
    for field in FIELDS:
        expected = getattr(entry, field)
        if field == "name" and entry.kind is Kind.DIRECTORY:
            assert read.name.rstrip(b"/") == expected
        else:
            assert getattr(read, field) == expected, field


def test_the_standard_library_reads_it_too() -> None:
    archive = b"".join(map(format_member, (entry for entry in CASES if not entry.size))) + END
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = [member.name for member in tar]
    assert len(names) == len(CASES) - 1


def test_a_size_that_a_header_cannot_hold() -> None:
    header = format_member(TarEntry(b"large", size=1 << 36))
    assert b"size=%d\n" % (1 << 36) in header


def test_a_name_that_no_reader_takes() -> None:
    with pytest.raises(UserError, match="a longer path than an archive can hold"):
        format_member(TarEntry(b"d/" * 2100))
