"""Marks of objects: who needs which, whatever their number."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.collect.objectmarks import PARTS, ObjectMarks, key_of, key_of_path
from mica.digest import Algorithm, Digest, Suffix
from mica.errors import UserError


@given(st.binary(min_size=20, max_size=20), st.sampled_from(Algorithm), st.sampled_from(Suffix))
def test_the_path_of_an_object_and_its_digest_have_the_same_key(
    raw: bytes, algorithm: Algorithm, suffix: Suffix
) -> None:
    digest = Digest(raw, algorithm)
    assert key_of_path(digest.object_path(suffix)) == key_of(digest, suffix)


@pytest.mark.parametrize(
    "path",
    [
        "", "data/", "data/ab", "data/txn/pointers.lock", "data/ab/" + 37 * "c", "data/ab/" + 39 * "c",
        "data/AB/" + 38 * "c", "data/ab/" + 38 * "c" + "L", "data/ab/" + 38 * "c" + "PP",
        "data/ab/" + 38 * "c" + "-md5", "data/ab/" + 38 * "c" + "\n", "x/data/ab/" + 38 * "c", ".cvmfspublished",
    ],
)  # fmt: skip
def test_other_paths_have_none(path: str) -> None:
    assert key_of_path(path) is None


def test_the_lowest_number_counts(tmp_path: Path) -> None:
    marks = ObjectMarks(tmp_path)
    digest = Digest(b"\7" + bytes(19), Algorithm.SHA1)
    for owner in (9, 3, 0xFFFFFFFE, 5):
        marks.add(owner, digest, Suffix.FILE)
    marks.add(8, digest, Suffix.CHUNK)
    assert marks.load(7) == {key_of(digest, Suffix.FILE): 3, key_of(digest, Suffix.CHUNK): 8}
    marks.add(1, digest, Suffix.FILE)
    assert marks.load(7)[key_of(digest, Suffix.FILE)] == 1
    assert [part for part in range(PARTS) if marks.load(part)] == [7]


def test_more_than_fits_into_memory_is_found_again_and_repetitions_take_no_room(tmp_path: Path) -> None:
    marks = ObjectMarks(tmp_path)
    chance = random.Random(1)
    few = [Digest(b"\1" + chance.randbytes(19), Algorithm.SHAKE128) for _ in range(1000)]
    for number in range(400):
        marks.add_many(number % 7 + 1, [(digest, Suffix.FILE) for digest in few])
    many = [Digest(chance.randbytes(20), Algorithm.SHA1) for _ in range(30_000)]
    marks.add_many(2, [(digest, Suffix.CATALOG) for digest in many])
    found = {key: owner for part in range(PARTS) for key, owner in marks.load(part).items()}
    assert found == {key_of(d, Suffix.FILE): 1 for d in few} | {key_of(d, Suffix.CATALOG): 2 for d in many}
    assert (tmp_path / "01").stat().st_size < 6 << 20, "10 MB of records of 1000 objects"


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    marks = ObjectMarks(tmp_path / "missing")
    marks.add(1, Digest(bytes(20), Algorithm.SHA1), Suffix.FILE)
    with pytest.raises(UserError, match="missing"):
        marks.load(0)
