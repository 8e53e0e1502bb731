"""Names of objects: made from what catalogs write."""

import pytest
from tests.support.catalogs import a_file, some_digest

from mica.digest import Algorithm, Suffix
from mica.repo.entry import Chunk, Flag, content_flags
from mica.repo.objectname import ObjectName, chunk_object, file_object
from mica.repo.objects import Compression

DIGEST = some_digest("content")


def test_a_file_is_one_object_or_in_chunks() -> None:
    assert file_object(a_file(b"x")) == ObjectName(DIGEST, Suffix.FILE, Compression.ZLIB, 5)
    assert file_object(a_file(b"x", digest=None)) is None
    chunk = Chunk(0, 4, DIGEST)
    assert chunk_object(chunk, Compression.NONE) == ObjectName(DIGEST, Suffix.CHUNK, Compression.NONE, 4)


def test_an_unknown_compression_is_refused() -> None:
    flags = int(Flag.FILE) | content_flags(Algorithm.SHA1, Compression.ZLIB) | 7 << 11
    with pytest.raises(ValueError, match="7"):
        file_object(a_file(b"x", flags=flags))


def test_the_place_and_the_most_bytes_of_an_object() -> None:
    text = DIGEST.text
    name = ObjectName(DIGEST, Suffix.CATALOG, Compression.ZLIB, None, limit=9)
    assert (name.path, name.most) == (f"data/{text[:2]}/{text[2:]}C", 9)
    assert name._replace(size=5).most == 5
