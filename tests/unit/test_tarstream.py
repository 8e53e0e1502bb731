"""The tar reader against GNU tar, bsdtar and the standard library, and against archives nobody should make."""

import functools
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.noise import noise
from tests.support.tars import (
    BLOCK,
    END,
    base256,
    by_program,
    by_tarfile,
    contents,
    entries,
    header,
    member,
    padded,
    pax,
    pax_record,
)
from tests.support.tools import need

from mica.errors import UserError
from mica.tarstream import Kind, TarEntry, TarLimits, read_tar

LONG = b"/".join([b"d" * 90] * 3) + b"/file"


def only(archive: bytes) -> TarEntry:
    (entry,) = entries(archive)
    return entry


def read_all(reader: Iterator[TarEntry]) -> None:
    for entry in reader:
        while entry.read(1 << 20):
            pass


def refused(archive: bytes, *, limits: TarLimits | None = None, require_end: bool = True) -> str:
    reader = read_tar(io.BytesIO(archive), limits=limits or TarLimits(), require_end=require_end)
    with pytest.raises(UserError) as failure:
        read_all(reader)
    message = str(failure.value)
    assert message.isprintable()
    assert message.endswith(".")
    return message


class Dribble(io.RawIOBase):
    """A stream that gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def read(self, n: int = -1, /) -> bytes:
        return self._data.read(min(n, self._step))


# Judges


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "dir" / ("n" * 90) / ("m" * 90) / ("k" * 90)).mkdir(parents=True)
    (root / "dir" / "file").write_bytes(bytes(range(256)) * 40)
    (root / "dir" / "empty").touch()
    os.link(root / "dir" / "file", root / "hard")
    (root / "link").symlink_to("dir/" + "f" * 120)
    (root / "dir" / ("n" * 90) / ("m" * 90) / ("k" * 90) / "leaf").write_bytes(b"leaf")
    (root / os.fsdecode(b"latin\xe9")).write_bytes(b"e")
    os.mkfifo(root / "fifo")
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(0, 1_234_567_890_123_456_789), follow_symlinks=False)
    os.utime(root / "hard", ns=(0, -1_500_000_000))
    return root


KINDS_OF_MODES = {0o10: Kind.REGULAR, 0o04: Kind.DIRECTORY, 0o12: Kind.SYMLINK, 0o01: Kind.FIFO}


def check_against_disk(archive: bytes, root: Path, *, has_ns: bool, has_negative: bool = True) -> None:
    """Every path of the tree once, with the attributes the disk has."""
    seen = set()
    for entry in read_tar(io.BytesIO(archive), require_end=True):
        path = os.path.join(os.fsencode(root), entry.name)
        status = os.lstat(path)
        seen.add(os.path.normpath(path))
        data = entry.data()
        if entry.kind is Kind.HARDLINK:
            assert os.path.samestat(os.stat(os.path.join(os.fsencode(root), entry.link)), status)
            continue
        assert entry.kind is KINDS_OF_MODES[status.st_mode >> 12]
        assert (entry.mode, entry.uid, entry.gid) == (status.st_mode & 0o7777, status.st_uid, status.st_gid)
        if status.st_mtime_ns >= 0 or has_negative:
            expected = divmod(status.st_mtime_ns, 10**9)
            assert (entry.mtime_s, entry.mtime_ns) == (expected if has_ns else (expected[0], 0))
        if entry.kind is Kind.SYMLINK:
            assert entry.link == os.readlink(path)
        elif entry.kind is Kind.REGULAR:
            assert entry.size == status.st_size
            assert data == Path(os.fsdecode(path)).read_bytes()
    everything = {os.fsencode(path) for path in root.rglob("*")} | {os.fsencode(root)}
    assert seen == everything


@pytest.mark.parametrize("archive_format", ["gnu", "pax"])
def test_reads_what_gnu_tar_writes(tree: Path, archive_format: str) -> None:
    archive = by_program(need("tar", "tar"), tree, f"--format={archive_format}")
    check_against_disk(archive, tree, has_ns=archive_format == "pax")


@pytest.mark.parametrize("archive_format", ["v7", "ustar"])
def test_reads_what_gnu_tar_writes_in_old_formats(tmp_path: Path, archive_format: str) -> None:
    (tmp_path / "p" / ("n" * 60)).mkdir(parents=True)
    (tmp_path / "p" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to("p/file")
    if archive_format == "ustar":
        deep = tmp_path / "p" / ("n" * 60) / ("m" * 60)
        deep.mkdir()
        (deep / "leaf").write_bytes(b"leaf")
        os.mkfifo(tmp_path / "fifo")
    archive = by_program(need("tar", "tar"), tmp_path, f"--format={archive_format}")
    check_against_disk(archive, tmp_path, has_ns=False)


@pytest.mark.parametrize("archive_format", ["pax", "gnutar"])
def test_reads_what_bsdtar_writes(tree: Path, archive_format: str) -> None:
    archive = by_program(need("bsdtar", "libarchive-tools"), tree, f"--format={archive_format}")
    # libarchive 3.6 writes -1.5 s as "-2.5" into pax headers and as 0 into others.
    check_against_disk(archive, tree, has_ns=archive_format == "pax", has_negative=False)


SPARSE = [
    ["--format=gnu"],
    ["--format=pax", "--sparse-version=0.0"],
    ["--format=pax", "--sparse-version=0.1"],
    ["--format=pax", "--sparse-version=1.0"],
]


def write_sparse(path: Path, pieces: int) -> bytes:
    with path.open("wb") as file:
        for number in range(pieces):
            file.seek(number * 65536 + 8192)
            file.write(bytes([number + 1]) * 4096)
        file.truncate(pieces * 65536 + 12345)
    return path.read_bytes()


@pytest.mark.parametrize("options", SPARSE, ids=lambda options: options[-1])
@pytest.mark.parametrize("pieces", [0, 1, 3, 60])
def test_sparse_files_have_their_whole_content(tmp_path: Path, options: list[str], pieces: int) -> None:
    content = write_sparse(tmp_path / "sparse", pieces)
    (tmp_path / "z-after").write_bytes(b"after")
    archive = by_program(need("tar", "tar"), tmp_path, "--sparse", "--sort=name", *options)
    assert len(archive) < len(content) // 2 + 40_000
    read = dict(contents(archive))
    assert read[b"./sparse"] == content
    assert read[b"./z-after"] == b"after"


@pytest.mark.parametrize("options", SPARSE, ids=lambda options: options[-1])
def test_sparse_data_may_be_read_in_part_or_not_at_all(tmp_path: Path, options: list[str]) -> None:
    content = write_sparse(tmp_path / "sparse", 30)
    (tmp_path / "z-after").write_bytes(b"after")
    archive = by_program(need("tar", "tar"), tmp_path, "--sparse", "--sort=name", *options)
    for amount in (0, 1, 8191, 8193, 100_000, len(content)):
        read = {}
        for entry in read_tar(io.BytesIO(archive), require_end=True):
            read[entry.name] = entry.read(amount)
        assert read[b"./sparse"] == content[:amount]
        assert read[b"./z-after"] == b"after"[:amount]


def test_sparse_file_of_bsdtar(tmp_path: Path) -> None:
    content = write_sparse(tmp_path / "sparse", 5)
    archive = by_program(need("bsdtar", "libarchive-tools"), tmp_path, "--format=pax")
    assert dict(contents(archive))[b"./sparse"] == content


XATTRS = {"user.plain": b"value", "user.a=b%c": b"\x00\xff=\n", "user.empty": b""}


@pytest.mark.parametrize(
    ("program", "options"),
    [("tar", ["--format=pax", "--xattrs", "--xattrs-include=*"]), ("bsdtar", ["--format=pax", "--xattrs"])],
)
def test_extended_attributes(tmp_path: Path, program: str, options: list[str]) -> None:
    (tmp_path / "file").write_bytes(b"x")
    try:
        for name, value in XATTRS.items():
            os.setxattr(tmp_path / "file", name, value)
    except OSError:
        pytest.skip("the file system of the temporary directory has no user attributes")
    archive = by_program(need(program, "tar" if program == "tar" else "libarchive-tools"), tmp_path, *options)
    (entry,) = (entry for entry in entries(archive) if entry.name == b"./file")
    expected = {os.fsencode(name): value for name, value in XATTRS.items()}
    if program == "bsdtar":  # writes raw names, which the first = ends, in one of its two forms
        assert expected.items() >= {b"user.plain": entry.xattrs[b"user.plain"]}.items()
        assert entry.xattrs[b"user.empty"] == b""
    else:
        assert entry.xattrs == expected


def test_gnu_tar_unpacks_what_we_describe(tree: Path, tmp_path: Path) -> None:
    """The same archive, unpacked by GNU tar, holds the files we list."""
    archive = by_program(need("tar", "tar"), tree, "--format=pax")
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["tar", "-xf", "-", "-C", str(target)], input=archive, check=True)
    check_against_disk(archive, target, has_ns=True)


@pytest.mark.parametrize("archive_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_the_standard_library_writes(archive_format: int) -> None:
    def fill(archive: tarfile.TarFile) -> None:
        for number, kind in enumerate([tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]):
            info = tarfile.TarInfo(f"special{number}")
            info.type, info.devmajor, info.devminor, info.mode = kind, 8, 3, 0o4711
            archive.addfile(info)

    found = entries(by_tarfile(fill, archive_format))
    assert [entry.kind for entry in found] == [Kind.CHARACTER, Kind.BLOCK, Kind.FIFO, Kind.REGULAR]
    assert [(entry.device_major, entry.device_minor) for entry in found] == [(8, 3), (8, 3), (0, 0), (0, 0)]
    assert {entry.mode for entry in found} == {0o4711}


# Reading


@pytest.mark.parametrize("step", [1, 511, 513, 4096])
def test_streams_may_give_little_at_a_time(step: int) -> None:
    archive = member(b"a", b"x" * 700) + pax([(b"path", LONG)]) + member(b"b", b"y" * 1024) + END
    read = [(entry.name, entry.data()) for entry in read_tar(Dribble(archive, step), require_end=True)]
    assert read == [(b"a", b"x" * 700), (LONG, b"y" * 1024)]


def test_large_data_in_pieces() -> None:
    data = noise(1_500_000)
    for amount in (1000, 262_144, 700_001, 5_000_000):
        entry = next(read_tar(io.BytesIO(member(b"a", data) + END), require_end=True))
        assert b"".join(iter(functools.partial(entry.read, amount), b"")) == data


def test_data_is_only_there_until_the_reader_goes_on() -> None:
    reader = read_tar(io.BytesIO(member(b"a", b"123") + member(b"b") + END), require_end=True)
    first = next(reader)
    assert (first.read(2), first.read(-1), first.read(5)) == (b"12", b"3", b"")
    next(reader)
    asks: list[Callable[[], bytes]] = [lambda: first.read(1), lambda: first.read(0), first.data]
    for ask in asks:
        with pytest.raises(ValueError, match="went on"):
            ask()


def test_offsets_are_those_of_the_headers() -> None:
    archive = member(b"a", b"x" * 5000) + pax([(b"mtime", b"1.5")]) + member(b"b") + END
    assert [entry.offset for entry in entries(archive)] == [0, BLOCK * 13]


def test_skipped_data_across_the_buffer() -> None:
    archive = b"".join(member(b"f%d" % number, bytes(200_000 + number)) for number in range(8)) + END
    assert [entry.size for entry in entries(archive)] == [200_000 + number for number in range(8)]


# Headers


def test_both_checksums_are_accepted() -> None:
    name = b"\xff\xfe\xe9"
    block = header(name)
    signed = sum(byte - 256 * (byte > 127) for byte in block[:148] + b" " * 8 + block[156:])
    assert only(header(name, checksum=b"%06o\0 " % signed) + END).name == name
    assert only(block + END).name == name


@pytest.mark.parametrize("place", [0, 99, 100, 124, 136, 147, 156, 157, 257, 345, 511])
def test_a_flipped_bit_in_a_header_is_seen(place: int) -> None:
    archive = bytearray(member(b"first") + member(b"second", b"data") + END)
    archive[BLOCK + place] ^= 1
    assert f"byte {BLOCK}" in refused(bytes(archive))


def test_numbers_of_gnu() -> None:
    entry = only(
        header(uid=base256(2**31, 8), gid=base256(2**32 - 2, 8), mtime=base256(-5, 12), magic=b"ustar  \0") + END
    )
    assert (entry.uid, entry.gid, entry.mtime_s) == (2**31, 2**32 - 2, -5)


@pytest.mark.parametrize(
    ("number", "owner"), [(-2, 2**32 - 2), (-(2**31), 2**31), (2**32 - 2, 2**32 - 2), (-1, 0), (2**32 - 1, 0)]
)
def test_owners_are_32_bits_with_or_without_a_sign(number: int, owner: int) -> None:
    """As umoci's unpacking shows them; -1 leaves to chown what who unpacks has made, which is root's."""
    entry = only(header(uid=base256(number, 8), gid=base256(number, 8), magic=b"ustar  \0") + END)
    assert (entry.uid, entry.gid) == (owner, owner)
    text = b"%d" % number
    entry = only(pax([(b"uid", text), (b"gid", text)]) + header() + END)
    assert (entry.uid, entry.gid) == (owner, owner)


@pytest.mark.parametrize("text", [b"-2147483649", b"4294967296", b"--1", b"1.5", b"-", b"0x1"])
def test_absurd_owners(text: bytes) -> None:
    assert "absurd" in refused(pax([(b"uid", text)]) + header() + END)
    assert "absurd" in refused(pax([(b"gid", text)]) + header() + END)


@pytest.mark.parametrize("field", [b"   644 \0", b"000644 \0", b"    644\0", b"0000644 ", b"0000644\0", b"00000644"])
def test_octal_fields_in_the_wild(field: bytes) -> None:
    assert only(header(mode=field) + END).mode == 0o644


@pytest.mark.parametrize("field", [b"-000644\0", b"0x00644\0", b"0000_44\0", b"0000848\0", b"064 644\0", b"+000644\0"])
def test_other_numbers_are_absurd(field: bytes) -> None:
    assert "'file'" in refused(header(mode=field) + END)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": base256(-1, 12)},
        {"size": base256(2**70, 12)},
        {"mtime": base256(2**63, 12)},
        {"mtime": base256(-(2**64), 12)},
        {"uid": base256(-(2**31) - 1, 8)},
        {"gid": base256(2**32, 8)},
        {"type_flag": b"3", "major": base256(2**12, 8)},
        {"type_flag": b"4", "minor": base256(2**20, 8)},
    ],
)
def test_absurd_numbers(fields: dict[str, bytes]) -> None:
    assert "absurd" in refused(header(**fields) + END)


def test_prefix_is_for_posix_archives_only() -> None:
    assert only(header(b"name", prefix=b"some/dir") + END).name == b"some/dir/name"
    assert only(header(b"name", prefix=b"some/dir", magic=b"ustar  \0") + END).name == b"name"
    assert only(header(b"name", prefix=b"some/dir", magic=bytes(8)) + END).name == b"name"
    star = b"some/dir".ljust(131, b"\0") + b"00000000000\x0000000000000\0" + b"\0" * 8 + b"tar\0"
    assert only(header(b"name", tail=star) + END).name == b"some/dir/name"


@pytest.mark.parametrize("type_flag", [b"0", b"\0"])
def test_old_directories_are_files_with_a_slash(type_flag: bytes) -> None:
    archive = member(b"dir/", b"ignored", type_flag=type_flag) + member(b"next", b"data") + END
    found = entries(archive)
    assert [(entry.name, entry.kind, entry.size) for entry in found] == [
        (b"dir/", Kind.DIRECTORY, 0),
        (b"next", Kind.REGULAR, 4),
    ]
    assert contents(archive) == [(b"dir/", b""), (b"next", b"data")]


@pytest.mark.parametrize("type_flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_members_without_data_have_none_whatever_their_size_says(type_flag: bytes) -> None:
    archive = header(b"a", size=700, type_flag=type_flag, link=b"t") + member(b"b", b"data") + END
    assert contents(archive) == [(b"a", b""), (b"b", b"data")]


def test_volume_labels_are_no_files_and_unknown_types_are_refused() -> None:
    assert contents(header(b"label", type_flag=b"V") + member(b"a") + END) == [(b"a", b"")]
    for type_flag in (b"D", b"M", b"9", b"s", b"\x1b"):
        assert "unknown type" in refused(header(b"a", type_flag=type_flag) + END)


# Names


def test_gnu_long_names() -> None:
    link = b"t" * 300
    archive = member(b"././@LongLink", LONG + b"\0", type_flag=b"L")
    archive += member(b"././@LongLink", link + b"\0", type_flag=b"K")
    first, second = entries(archive + header(b"short", type_flag=b"2", link=b"cut") + header(b"next") + END)
    assert (first.name, first.link) == (LONG, link)
    assert (second.name, second.link) == (b"next", b"")


@pytest.mark.parametrize(
    "archive",
    [
        pax([(b"path", b"n" * 300)]) + header(),
        pax([(b"path", b"dir/" + b"n" * 256 + b"/x")]) + header(),
        pax([(b"path", b"n/" * 2048)]) + header(),
        pax([(b"path", b"a\0b")]) + header(),
        pax([(b"linkpath", b"a\0b")]) + header(type_flag=b"2"),
        pax([(b"linkpath", b"n/" * 2048)]) + header(type_flag=b"1"),
        header(type_flag=b"2"),
        header(type_flag=b"1"),
        header(b""),
        member(b"L", b"n" * 256, type_flag=b"L") + header(),
    ],
)
def test_impossible_names(archive: bytes) -> None:
    assert "byte " in refused(archive + END)


def test_longest_names() -> None:
    name = b"/".join([b"n" * 255] * 16)[:4095]
    assert only(pax([(b"path", name)]) + header() + END).name == name


def test_names_are_shown_so_that_they_cannot_lie() -> None:
    message = refused(header(b"\x1b[2J\xff", mode=b"rubbish\0") + END)
    assert r"'\x1b[2J\xff'" in message
    assert len(refused(pax([(b"path", b"n" * 100_000)]) + header() + END)) < 400


# pax


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1700000000.123456789", (1_700_000_000, 123_456_789)),
        (b"1.5", (1, 500_000_000)),
        (b"1.", (1, 0)),
        (b"7", (7, 0)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-0.000000001", (-1, 999_999_999)),
        (b"-3", (-3, 0)),
        (b"0.9999999999", (0, 999_999_999)),
        (b"-0.9999999999", (-1, 0)),
        (b"-0.99999999901", (-1, 0)),
        (b"9223372036854775807", (2**63 - 1, 0)),
        (b"-9223372036854775808", (-(2**63), 0)),
    ],
)
def test_times_are_exact(text: bytes, expected: tuple[int, int]) -> None:
    entry = only(pax([(b"mtime", text)]) + header() + END)
    assert (entry.mtime_s, entry.mtime_ns) == expected


@pytest.mark.parametrize(
    "text",
    [b"9223372036854775808", b"-9223372036854775808.1", b"1e5", b"nan", b"0x1", b"1.5.5", b" 1", b"1" * 5000, b"--1"],
)
def test_absurd_times(text: bytes) -> None:
    assert "absurd" in refused(pax([(b"mtime", text)]) + header() + END)


def test_records_override_the_header() -> None:
    records = [(b"path", b"p"), (b"uid", b"3000000"), (b"gid", b"4000000"), (b"size", b"3"), (b"hdrcharset", b"BINARY")]
    archive = pax([*records, (b"comment", b"x")]) + header(b"h", size=0) + padded(b"abc") + member(b"next") + END
    (entry, data), second = [(entry, entry.data()) for entry in read_tar(io.BytesIO(archive), require_end=True)]
    assert (entry.name, entry.uid, entry.gid, data) == (b"p", 3_000_000, 4_000_000, b"abc")
    assert (second[0].name, second[0].uid) == (b"next", 0)


def test_global_records_hold_until_taken_back() -> None:
    archive = pax([(b"uid", b"5"), (b"SCHILY.xattr.user.g", b"1")], type_flag=b"g") + header(b"a")
    archive += pax([(b"uid", b"6")]) + header(b"b") + pax([(b"uid", b"")]) + header(b"c") + header(b"d") + END
    found = entries(archive)
    assert [entry.uid for entry in found] == [5, 6, 0, 5]
    assert {entry.xattrs[b"user.g"] for entry in found} == {b"1"}


def test_attributes_of_both_schools() -> None:
    records = [
        (b"SCHILY.xattr.security.capability", b"\x01\x00\x00\x02\n="),
        (b"SCHILY.xattr.user.a%3Db%25", b""),
        (b"LIBARCHIVE.xattr.user.%6cib", b"AP8"),
        (b"LIBARCHIVE.xattr.security.capability", b"AAAA"),
    ]
    assert only(pax(records) + header() + END).xattrs == {
        b"security.capability": b"\x01\x00\x00\x02\n=",
        b"user.a=b%": b"",
        b"user.lib": b"\x00\xff",
    }


@pytest.mark.parametrize(
    "body",
    [
        b"9 path=x\n" + b"3 \n",
        b"99 path=x\n",
        b"999999999999999999999999 path=x\n",
        b"-9 path=x\n",
        b"path=x\n",
        b"8 path=x\n",
        b"8 pathx\n\n",
        b"9 path=xy",
        b"0 =\n",
        b"5 =a\n",
        pax_record(b"LIBARCHIVE.xattr.user.a", b"!!!"),
        pax_record(b"size", b"-1"),
        pax_record(b"size", b"1" * 30),
        pax_record(b"uid", b"4294967296"),
    ],
)
def test_damaged_records(body: bytes) -> None:
    refused(member(b"x", body, type_flag=b"x") + header() + END)


def test_a_size_record_that_lies() -> None:
    archive = pax([(b"size", b"100000")]) + member(b"a", b"abc") + END
    assert "truncated in the data of 'a'" in refused(archive)
    assert "truncated in the data of 'a'" in refused(pax([(b"size", b"9" * 18)]) + member(b"a") + END, limits=HUGE)


HUGE = TarLimits(max_bytes=2**63)


def test_gigantic_headers_are_refused_before_they_are_read() -> None:
    for type_flag in (b"x", b"g", b"L", b"K"):
        assert "exceed" in refused(header(b"x", size=1 << 30, type_flag=type_flag) + END)
    many = b"".join(pax([(b"comment", b"c" * 400)]) for _ in range(3000))
    assert "exceed" in refused(many + header() + END)
    attributes = [(b"SCHILY.xattr.user.%d" % number, b"") for number in range(5000)]
    assert "attributes" in refused(pax(attributes) + header() + END)


# Sparse maps by hand


def old_sparse(pairs: list[tuple[int, int]], size: int, data: bytes, *, stated: int | None = None) -> bytes:
    table = b"".join(b"%011o\0%011o\0" % pair for pair in pairs[:4]).ljust(96, b"\0")
    tail = bytes(41) + table + bytes([len(pairs) > 4]) + b"%011o\0" % size
    stated = len(data) if stated is None else stated
    return header(b"sparse", size=stated, type_flag=b"S", magic=b"ustar  \0", tail=tail) + padded(data)


def test_old_sparse_by_hand() -> None:
    assert contents(old_sparse([(3, 2), (9, 1)], 12, b"abc") + END) == [(b"sparse", b"\0\0\0ab\0\0\0\0c\0\0")]


@pytest.mark.parametrize(
    "archive",
    [
        old_sparse([(3, 2), (4, 1)], 12, b"abc"),
        old_sparse([(9, 1), (3, 2)], 12, b"abc"),
        old_sparse([(3, 2), (11, 2)], 12, b"abcd"),
        old_sparse([(3, 2)], 12, b"abc"),
        old_sparse([(3, 5)], 12, b"abc"),
        pax([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"1,2,3")]) + member(b"a", b"ab"),
        pax([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"1,x")]) + member(b"a", b"ab"),
        pax([(b"GNU.sparse.size", b""), (b"GNU.sparse.map", b"")]) + member(b"a"),
        pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]) + member(b"a", b"0\n".ljust(512, b"\0")),
        pax([(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")]) + member(b"a", b"0\n"),
        pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"5")])
        + member(b"a", b"1" * 512 * 9),
        pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"5")])
        + member(b"a", b"1000000000000\n1\n".ljust(1024, b"\0")),
    ],
)
def test_sparse_maps_that_lie(archive: bytes) -> None:
    refused(archive + END)


def test_holes_count_against_the_limit_and_take_no_memory() -> None:
    archive = old_sparse([(2**33 - 1, 0)], 2**33 - 1, b"") + END
    assert "unpacks to more than" in refused(archive, limits=TarLimits(max_bytes=2**32))
    entry = next(read_tar(io.BytesIO(archive), require_end=True))
    assert entry.read(5) == bytes(5)


# Limits and the end


def test_number_of_members_is_limited() -> None:
    archive = b"".join(header(b"f%d" % number) for number in range(11)) + END
    assert len(entries(archive, limits=TarLimits(max_entries=11))) == 11
    assert "more than 10 members" in refused(archive, limits=TarLimits(max_entries=10))
    labels = header(b"l", type_flag=b"V") * 11 + header() + END
    assert "more than 10 members" in refused(labels, limits=TarLimits(max_entries=10))


def test_sum_of_sizes_is_limited() -> None:
    archive = member(b"a", bytes(600)) + member(b"b", bytes(401)) + END
    assert len(entries(archive, limits=TarLimits(max_bytes=1001))) == 2
    assert "'b'" in refused(archive, limits=TarLimits(max_bytes=1000))
    assert "unpacks to more" in refused(header(size=b"77777777777\0") * 200 + END, limits=TarLimits(max_bytes=2**20))


def test_every_cut_is_seen_where_an_end_is_required() -> None:
    archive = member(b"a", b"x" * 700) + pax([(b"path", LONG)]) + member(b"b", b"y" * 10)
    for length in range(0, len(archive), 37):
        assert "truncated" in refused(archive[:length])
    assert len(entries(archive + END)) == 2
    assert len(entries(archive + END[:BLOCK])) == 2


def test_an_archive_without_end_is_accepted_behind_a_whole_member() -> None:
    first = member(b"a", b"x" * 700)
    archive = first + pax([(b"path", LONG)]) + member(b"b", b"y" * 10)
    whole = {0: 0, len(first): 1, len(archive): 2}
    for length in range(0, len(archive) + 1, 64):
        if length in whole:
            assert len(entries(archive[:length], require_end=False)) == whole[length]
        else:
            assert "truncated" in refused(archive[:length], require_end=False)


def test_garbage_behind_the_end_is_ignored_but_not_behind_one_zero_block() -> None:
    assert len(entries(member(b"a") + END + noise(3000))) == 1
    assert "single zero block" in refused(member(b"a") + bytes(BLOCK) + member(b"hidden") + END)


def test_garbage_is_no_archive() -> None:
    assert "checksum" in refused(b"\x1f\x8b" + bytes(range(255)) * 10)
