"""Sizes and ages as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.sizes import format_size, parse_age, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("512B", 512), ("1K", 1024), ("20G", 20 << 30), ("1.5T", 3 << 39),
        ("500MiB", 500 << 20), ("500MB", 500_000_000), ("0.001K", 1), ("2P", 2 << 50), ("1.25M", 5 << 18),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "1.G", "1.2345G", "1g", "1 G", "1GiBB", "1iB", "1e3", "٣G", "9" * 16, "1G\n"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (20 << 30, "20.0 GiB"), ((1 << 20) - 1, "1.0 MiB"),
        (1536, "1.5 KiB"), (1 << 63, "8192.0 PiB"),
    ],
)  # fmt: skip
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 60))
def test_what_is_shown_is_within_a_twentieth(size: int) -> None:
    assert abs(parse_size(format_size(size).replace(" ", "")) - size) <= max(size / 20, 1)


@pytest.mark.parametrize(("text", "age"), [("90s", 90), ("15m", 900), ("36h", 129600), ("7d", 604800), ("2w", 1209600)])
def test_ages(text: str, age: int) -> None:
    assert parse_age(text) == age


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "7 d", "1.5d", "7D", "7d\n"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(ValueError, match="is not an age"):
        parse_age(text)
