"""The protocol's texts: options, requests, bodies, replies; and what is refused of them."""

import io
from pathlib import Path

import pytest

from mica.drivers.docker.bodies import ChunkedBody, SizedBody, drain, read_whole
from mica.drivers.docker.messages import format_changes, parse_request, text_of, texts_of
from mica.drivers.docker.options import DriverOptions
from mica.engine.diff import Change, ChangeKind
from mica.engine.unions import UnionKind
from mica.engine.upload import CommitMode, LocalOnly, upload_for
from mica.errors import UserError


def test_options() -> None:
    assert DriverOptions.parse([]) == DriverOptions()
    texts = [
        "mica.repositories=a.example.org,b.example.org", "mica.method=external", "mica.external=/mnt/cvmfs",
        "mica.cache=/c", "mica.union=aufs", "mica.commit=upload",
    ]  # fmt: skip
    fqrns = frozenset({"a.example.org", "b.example.org"})
    expected = DriverOptions(fqrns, Path("/mnt/cvmfs"), Path("/c"), UnionKind.AUFS, CommitMode.UPLOAD)
    assert DriverOptions.parse(texts) == expected
    assert DriverOptions.parse(["mica.method=external"]).external == Path("/cvmfs")


@pytest.mark.parametrize(
    "text",
    [
        "size=1G", "mica.unknown=1", "mica.method", "mica.method=magic", "mica.union=unionfs", "mica.commit=",
        "mica.cache=relative", "mica.repositories=../..", "mica.repositories=a/b", "",
    ],
)  # fmt: skip
def test_options_that_are_wrong(text: str) -> None:
    with pytest.raises(UserError, match="option"):
        DriverOptions.parse([text])


def test_an_external_place_without_the_method() -> None:
    with pytest.raises(UserError, match=r"needs mica\.method=external"):
        DriverOptions.parse(["mica.method=internal", "mica.external=/cvmfs"])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"\xff", "not JSON"),
    ],
)
def test_requests_that_are_none(data: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_request(data)


def test_fields() -> None:
    assert text_of({}, "ID") == text_of({"ID": None}, "ID") == ""
    assert texts_of({"Opts": None}, "Opts") == []
    for wrong in (7, [], {}):
        with pytest.raises(UserError, match="ID of the request is not a text"):
            text_of({"ID": wrong}, "ID")
    for wrong in ("x", [7], {}):
        with pytest.raises(UserError, match="is not a list of texts"):
            texts_of({"Opts": wrong}, "Opts")


def test_changes_are_told_with_moby_s_numbers() -> None:
    changes = [Change(b"a", ChangeKind.MODIFIED), Change(b"b\xff", ChangeKind.DELETED)]
    assert format_changes(changes) == [{"Path": "/a", "Kind": 0}, {"Path": "/b\\xff", "Kind": 2}]


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> io.BytesIO:
    return io.BytesIO(b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end)


def test_chunks_are_put_together() -> None:
    data = chunked(b"one", b"x" * 5000, b"three")
    assert read_whole(ChunkedBody(data), 10_000) == b"one" + b"x" * 5000 + b"three"
    assert read_whole(ChunkedBody(io.BytesIO(b"3;name=value\r\nabc\r\n0\r\nTrailer: x\r\n\r\n")), 10) == b"abc"
    assert read_whole(ChunkedBody(io.BytesIO(b"0\r\n\r\n")), 10) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"5\r\nab",
        b"zz\r\n",
        b"-1\r\n\r\n",
        b"\r\n",
        b"f" * 17 + b"\r\n",
        b"3\r\nabc\r\n",
        b"1" * 5000,
        b"3\r\nabc\r\n0\r\n",
    ],
)
def test_chunks_that_are_cut_or_none(data: bytes) -> None:
    with pytest.raises(UserError, match="The request"):
        drain(ChunkedBody(io.BytesIO(data)))


def test_bodies_of_a_length() -> None:
    assert read_whole(SizedBody(io.BytesIO(b"abcdef"), 3), 10) == b"abc"
    with pytest.raises(UserError, match="ended in the middle"):
        drain(SizedBody(io.BytesIO(b"ab"), 3))
    with pytest.raises(UserError, match="more than 4 bytes"):
        read_whole(SizedBody(io.BytesIO(b"abcdef"), 6), 4)


def test_upload_without_a_portal_says_so() -> None:
    assert isinstance(upload_for(CommitMode.LOCAL), LocalOnly)
    with pytest.raises(UserError, match="no portal is configured"):
        upload_for(CommitMode.UPLOAD).begin("abc")
