"""Image descriptors: what we write is read back, and nothing hostile gets through."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.errors import UserError
from mica.thin.descriptor import (
    LAYER_LIMIT,
    SIZE_LIMIT,
    ThinDescriptor,
    ThinLayer,
    format_descriptor,
    parse_descriptor,
)

DIGEST = "ab" * 32
URL = f"cvmfs://images.example.org/.layers/ab/{DIGEST}/layerfs"


def document(**changes: Any) -> dict[str, Any]:
    return {"version": "1.0", "origin": "a/b:1", "layers": [{"digest": DIGEST, "url": URL}]} | changes


def layer(**changes: Any) -> dict[str, Any]:
    return document(layers=[{"digest": DIGEST, "url": URL} | changes])


NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,9}(\.[a-z0-9][a-z0-9-]{0,9}){1,3}", fullmatch=True)
PARTS = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="/"), min_size=1, max_size=20).filter(
    lambda part: part not in {".", ".."} and part.isprintable()
)
LAYERS = st.builds(
    ThinLayer,
    st.from_regex(r"[0-9a-f]{64}|[0-9a-f]{128}", fullmatch=True),
    NAMES,
    st.lists(PARTS, min_size=1, max_size=5).map(lambda parts: "/" + "/".join(parts)),
)
DESCRIPTORS = st.builds(
    ThinDescriptor,
    st.text(),
    st.lists(LAYERS, min_size=1, max_size=5).map(tuple),
    st.text(),
    st.text(),
    st.dictionaries(NAMES, st.integers(0, 10**18 - 1), max_size=3).map(lambda known: tuple(sorted(known.items()))),
)


@given(DESCRIPTORS)
def test_what_is_written_is_read_back(descriptor: ThinDescriptor) -> None:
    assert parse_descriptor(format_descriptor(descriptor), "it") == descriptor


def test_written_as_documented() -> None:
    descriptor = ThinDescriptor("docker.io/library/debian:12", (ThinLayer(DIGEST, "a.example.org", "/x"),))
    expected = {
        "version": "1.0",
        "origin": "docker.io/library/debian:12",
        "layers": [{"digest": DIGEST, "url": "cvmfs://a.example.org/x"}],
    }
    assert json.loads(format_descriptor(descriptor)) == expected


def test_revisions_are_written_as_documented() -> None:
    layers = (ThinLayer(DIGEST, "a.example.org", "/x"),)
    descriptor = ThinDescriptor("a/b:1", layers, revisions=(("a.example.org", 17),))
    assert json.loads(format_descriptor(descriptor))["revisions"] == {"a.example.org": 17}
    assert (descriptor.revision_of("a.example.org"), descriptor.revision_of("b.example.org")) == (17, 0)


@pytest.mark.parametrize(
    "revisions",
    [[], 17, {"a.example.org": "17"}, {"a.example.org": True}, {"a.example.org": -1}, {"a.example.org": 10**18},
     {"../x": 1}, {"a.example.org": 1.5}, None],
)  # fmt: skip
def test_wrong_revisions_are_refused(revisions: Any) -> None:
    with pytest.raises(UserError, match=r"'revisions'"):
        parse_descriptor(json.dumps(document(revisions=revisions)).encode(), "it")


def test_later_versions_of_the_same_major_are_read() -> None:
    assert parse_descriptor(json.dumps(document(version="1.7", more={"x": 1})).encode(), "it").origin == "a/b:1"


def test_repositories_of_the_layers() -> None:
    other = {"digest": DIGEST, "url": "cvmfs://other.example.org/x"}
    layers = [*document()["layers"], other, other]
    descriptor = parse_descriptor(json.dumps(document(layers=layers)).encode(), "it")
    assert descriptor.repositories == {"images.example.org", "other.example.org"}


HOSTILE = {
    "a list": ([], "not an object"),
    "a number": (1, "not an object"),
    "no version": ({"layers": [{"digest": DIGEST, "url": URL}]}, "version"),
    "a number as version": (document(version=1.0), "version"),
    "major 2": (document(version="2.0"), "version '2.0'"),
    "major 10": (document(version="10.0"), "version"),
    "a version without end": (document(version="9" * 10_000), "version"),
    "no layers": (document(layers=[]), "no layers"),
    "layers are an object": (document(layers={"0": URL}), "no layers"),
    "a layer is a text": (document(layers=[URL]), "digest"),
    "too many layers": (document(layers=[{"digest": DIGEST, "url": URL}] * (LAYER_LIMIT + 1)), "501 layers"),
    "an origin that is no text": (document(origin=["x"]), "texts"),
    "a comment that is no text": (document(comment=7), "texts"),
    "no digest": (layer(digest=None), "digest"),
    "a digest with its algorithm": (layer(digest=f"sha256:{DIGEST}"), "digest"),
    "a digest in capitals": (layer(digest=DIGEST.upper()), "digest"),
    "a digest with a newline": (layer(digest=f"{DIGEST}\n"), "digest"),
    "a digest that is a path": (layer(digest="../" * 21 + "x"), "digest"),
    "a number as URL": (layer(url=5), "URL"),
    "another scheme": (layer(url="http://images.example.org/x"), "URL"),
    "a file": (layer(url="file:///etc/passwd"), "URL"),
    "no path": (layer(url="cvmfs://images.example.org"), "URL"),
    "only a slash": (layer(url="cvmfs://images.example.org/"), "path"),
    "no repository": (layer(url="cvmfs:///x"), "URL"),
    "repository ..": (layer(url="cvmfs://../x"), "URL"),
    "repository .": (layer(url="cvmfs://./x"), "URL"),
    "a port": (layer(url="cvmfs://images.example.org:80/x"), "URL"),
    "a user": (layer(url="cvmfs://me@images.example.org/x"), "URL"),
    "a backslash in the name": (layer(url="cvmfs://a\\b.example.org/x"), "URL"),
    "a zero byte in the name": (layer(url="cvmfs://a\0.example.org/x"), "URL"),
    "a name of 61 characters": (layer(url=f"cvmfs://{'a' * 61}/x"), "URL"),
    "a newline in the name": (layer(url="cvmfs://a.example.org\n/x"), "URL"),
    "parent": (layer(url="cvmfs://images.example.org/.."), "path"),
    "hidden parent": (layer(url="cvmfs://images.example.org/a/../../../etc"), "path"),
    "here": (layer(url="cvmfs://images.example.org/a/./b"), "path"),
    "two slashes": (layer(url="cvmfs://images.example.org//etc"), "path"),
    "a slash at the end": (layer(url="cvmfs://images.example.org/a/"), "path"),
    "a zero byte": (layer(url="cvmfs://images.example.org/a\0b"), "path"),
    "a newline": (layer(url="cvmfs://images.example.org/a\nb"), "URL"),
    "a terminal's escape": (layer(url="cvmfs://images.example.org/a\x1b[2J"), "path"),
    "half a surrogate pair": (layer(url="cvmfs://images.example.org/a\ud800"), "path"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_descriptor_is_refused_by_name(name: str) -> None:
    value, word = HOSTILE[name]
    with pytest.raises(UserError) as caught:
        parse_descriptor(json.dumps(value).encode(), "thin.json of it")
    sentence = str(caught.value)
    assert sentence.startswith("thin.json of it is not a valid image descriptor")
    assert sentence.endswith(".")
    assert word in sentence
    assert len(sentence) < 300
    assert sentence.isprintable()


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"nul", b'{"version": "1.0"', b"1" * 5000])
def test_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^thin\.json is not"):
        parse_descriptor(data, "thin.json")


def test_descriptor_without_end_is_refused_unread() -> None:
    with pytest.raises(UserError, match="more than an image descriptor can have"):
        parse_descriptor(b" " * (SIZE_LIMIT + 1), "it")


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.sampled_from(["version", "layers", "url", "digest"]), values),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_anything_is_a_descriptor_or_a_sentence(data: bytes) -> None:
    with contextlib.suppress(UserError):
        assert parse_descriptor(data, "it").layers
