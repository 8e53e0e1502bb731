"""Archives changed at random: the reader and the plan refuse with a sentence or read on, and stay bounded."""

import io
import tarfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.tars import END, by_tarfile, header, member, pax

from mica.errors import MicaError
from mica.publish.layertree import LAYER, PLAIN, LayerTree, Mode
from mica.tarstream import Kind, TarLimits, read_tar

SEEDS = [
    member(b"a", b"x" * 700) + header(b"d/", type_flag=b"5") + header(b"d/l", type_flag=b"1", link=b"a") + END,
    pax([(b"path", b"p" * 120), (b"mtime", b"-1.5"), (b"SCHILY.xattr.user.a", b"b")]) + member(b"a", b"abc") + END,
    member(b"L", b"n" * 150 + b"\0", type_flag=b"L") + header(b"n", type_flag=b"2", link=b"t") + member(b".wh.x") + END,
    pax([(b"GNU.sparse.size", b"99"), (b"GNU.sparse.map", b"3,2,50,1")]) + member(b"s", b"abc") + END,
    pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"99")])
    + member(b"s", b"2\n3\n2\n50\n1\n".ljust(512, b"\0") + b"abc")
    + END,
    pax([(b"uid", b"7")], type_flag=b"g") + header(b"c", type_flag=b"3", major=b"0000001\0") + END,
]
LIMITS = TarLimits(max_entries=100, max_bytes=1 << 20, max_header_bytes=1 << 16)


@st.composite
def damaged_archives(draw: st.DrawFn) -> bytes:
    """Valid archives joined, then overwritten, cut or extended; headers may get a right checksum again."""
    archive = bytearray(b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(archive) - 1))
        piece = draw(st.binary(min_size=1, max_size=12) | st.sampled_from([b"\xff" * 8, b"\x80" + bytes(11), b"777"]))
        archive[place : place + len(piece)] = piece
        if draw(st.booleans()):
            start = place - place % 512
            block = bytearray(archive[start : start + 512].ljust(512, b"\0"))
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            archive[start : start + 512] = block
    if draw(st.booleans()):
        del archive[draw(st.integers(0, len(archive))) :]
    return bytes(archive)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(archive=damaged_archives(), require_end=st.booleans(), mode=st.sampled_from([LAYER, PLAIN]))
def test_damaged_archives(archive: bytes, require_end: bool, mode: Mode) -> None:
    tree = LayerTree(mode, max_memory_bytes=1 << 20)
    total = 0
    try:
        for entry in read_tar(io.BytesIO(archive), limits=LIMITS, require_end=require_end):
            node = tree.add(entry)
            if node is not None and node.kind is Kind.REGULAR:
                node.content = entry.data()
                total += entry.size
        report = tree.finish()
    except MicaError:
        return
    finally:
        assert total <= LIMITS.max_bytes
    paths = [path for path, _ in tree.walk()]
    assert len(paths) == len(set(paths))
    for path in paths:
        assert b".." not in path.split(b"/")
        assert not (mode is LAYER and path.rpartition(b"/")[2].startswith(b".wh."))
    assert report.bytes <= total


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=2000), require_end=st.booleans())
def test_noise(noise: bytes, require_end: bool) -> None:
    try:
        for entry in read_tar(io.BytesIO(noise), limits=LIMITS, require_end=require_end):
            entry.data()
    except MicaError:
        pass


NAMES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda name: name not in {".", ".."})  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    files=st.dictionaries(
        st.lists(NAMES, min_size=1, max_size=4).map("/".join),
        st.tuples(st.binary(max_size=1500), st.integers(0, 0o7777), st.integers(-(2**40), 2**40)),
        max_size=6,
    ),
    archive_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_what_the_standard_library_writes_comes_back(
    files: dict[str, tuple[bytes, int, int]], archive_format: int
) -> None:
    def fill(archive: tarfile.TarFile) -> None:
        for name, (data, mode, mtime) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), mode, mtime
            archive.addfile(info, io.BytesIO(data))

    read = {
        entry.name.decode(): (entry.data(), entry.mode, entry.mtime_s)
        for entry in read_tar(io.BytesIO(by_tarfile(fill, archive_format)), require_end=True)
    }
    assert read == files
