"""Metadata images from anywhere: reading ends with files or with a sentence, after as much work as there are bytes."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.imagetrees import CHUNK_LISTS, everything, in_tree_order, random_tree

from mica.errors import IntegrityError
from mica.metaimage.chunktable import format_chunk_table
from mica.metaimage.erofs_abi import Superblock, format_superblock
from mica.metaimage.reader import read_chunk_lists, read_image
from mica.metaimage.writer import write_image

_SMALLEST_ENTRY = 13
"""A record of a directory and a name of one byte."""
_NOTHING_WRONG = "The image is right."


def written(seed: int) -> bytes:
    target = io.BytesIO()
    entries = everything() if seed < 0 else in_tree_order({}) if not seed else random_tree(seed)
    write_image(entries, target, CHUNK_LISTS)
    return target.getvalue()


IMAGES = [written(seed) for seed in (-1, 0, 1, 2, 3, 4, 5)]
SMALL = min(IMAGES[2:], key=len)


def read(image: bytes) -> int:
    """How many entries were read; what is wrong is an IntegrityError."""
    count = 0
    sentence = _NOTHING_WRONG
    try:
        for _ in read_image(io.BytesIO(image), "The image"):
            count += 1
    except IntegrityError as error:
        sentence = str(error)
    assert sentence.startswith("The image ")
    assert count <= 1 + len(image) // _SMALLEST_ENTRY
    return count


@settings(deadline=None)
@given(st.binary(max_size=20_000))
def test_any_bytes(data: bytes) -> None:
    read(data)
    read(data.ljust(1152, b"\0"))


@settings(deadline=None)
@given(st.binary(max_size=30_000), st.integers(0, 0xFFFF), st.integers(0, 12))
def test_any_bytes_behind_a_superblock(data: bytes, root: int, blocks: int) -> None:
    body = data[: blocks * 4096].ljust(blocks * 4096, b"\0")
    table = b"".join(format_chunk_table({}, 1))
    read(bytes(1024) + format_superblock(Superblock(root, 5, blocks, bytes(16))) + body[1152:] + table)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_images_with_other_bytes_here_and_there(data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from(IMAGES)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(image) - 1))
        new = data.draw(st.binary(min_size=1, max_size=8))
        image[at : at + len(new)] = new
    read(bytes(image))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_small_images_with_other_numbers(data: st.DataObject) -> None:
    """Numbers that already are somewhere in the image, where others were: what circles and overlaps are made of."""
    image = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        source, target = (data.draw(st.integers(37, len(image) // 4 - 3)) * 4 for _ in range(2))
        size = data.draw(st.sampled_from((2, 4, 8, 64)))
        image[target : target + size] = image[source : source + size]
    read(bytes(image))


@settings(deadline=None)
@given(st.sampled_from(IMAGES), st.floats(0, 1))
def test_images_that_end_early(image: bytes, part: float) -> None:
    cut = image[: int(len(image) * part)]
    if cut != image:
        assert read(cut) <= read(image)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_any_chunk_table(data: bytes, at: int) -> None:
    image = bytearray(IMAGES[0])
    end = len(image) - at
    image[end : end + len(data)] = data
    found: list[bytes] = []
    sentence = _NOTHING_WRONG
    try:
        found += [chunks for _, chunks in read_chunk_lists(io.BytesIO(image), "The image")]
    except IntegrityError as error:
        sentence = str(error)
    assert sentence.startswith("The image ")
    assert sum(map(len, found)) <= len(image)
