"""Any bytes as a request: the dispatcher answers in form or not at all, and never raises."""

import os

from hypothesis import given
from hypothesis import strategies as st
from tests.support.memorytree import MemoryTree, Node, symlink

from mica.fuse import abi
from mica.fuse.dispatch import Dispatcher
from mica.fuse.treefs import TreeFileSystem

TREE = MemoryTree({b"file": b"content", b"link": symlink(b"file"), b"dir": {b"x": Node(xattrs={b"user.a": b"b"})}})
DISPATCHER = Dispatcher(TreeFileSystem(TREE, entry_timeout_s=1, attr_timeout_s=1, negative_timeout_s=1))
SCRATCH = memoryview(bytearray(1 << 20))

words = st.integers(0, (1 << 64) - 1)
bodies = st.one_of(
    st.binary(max_size=128),
    st.lists(st.one_of(words, st.integers(0, 5000)), max_size=8).map(
        lambda values: b"".join(value.to_bytes(8, "little") for value in values)
    ),
    st.sampled_from([b"file\0", b"dir\0", b"..\0", b".\0", b"\0", b"a/b\0"]),
)
headers = st.builds(
    abi.InHeader,
    length=st.just(0),
    opcode=st.one_of(st.sampled_from(abi.Opcode).map(int), st.integers(0, (1 << 32) - 1)),
    unique=words,
    nodeid=st.one_of(st.integers(0, 7), words),
    uid=st.just(0),
    gid=st.just(0),
    pid=st.one_of(st.just(0), st.just(os.getpid()), st.integers(0, (1 << 32) - 1)),
    total_extlen=st.integers(0, 65535),
    padding=st.just(0),
)


def check(message: bytes) -> None:
    answer = DISPATCHER.answer(memoryview(message), SCRATCH)
    if answer is None:
        return
    header = abi.parse_out_header(answer.header)
    assert header.length == len(answer.header) + len(answer.payload) <= len(SCRATCH) + len(answer.header)
    assert -512 < header.error <= 0
    assert not (header.error and answer.payload)


@given(st.binary(max_size=256))
def test_any_bytes(message: bytes) -> None:
    check(message)


@given(headers, bodies)
def test_any_request(header: abi.InHeader, body: bytes) -> None:
    check(abi.format_request(header, body))


@given(headers, bodies, st.integers(0, 200))
def test_any_request_cut_short(header: abi.InHeader, body: bytes, length: int) -> None:
    check(abi.format_request(header, body)[:length])


@given(st.binary(max_size=400))
def test_any_listing(body: bytes) -> None:
    for parse in (abi.parse_dirents, abi.parse_direntpluses, abi.parse_batch_forget_in):
        try:
            parse(body)
        except abi.MalformedMessageError:
            continue
