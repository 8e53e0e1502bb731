"""The status of a mount as text, and anything else that may come in its place."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.mount.status import MountStatus, format_status, parse_status

KINDS = {str: st.text(), int: st.integers(), bool: st.booleans()}
statuses = st.builds(MountStatus, **{name: KINDS[kind] for name, kind in MountStatus.__annotations__.items()})


@given(statuses)
def test_a_status_comes_back(status: MountStatus) -> None:
    assert parse_status(format_status(status).encode()) == status


@given(statuses, st.sampled_from(MountStatus._fields), st.one_of(st.none(), st.floats(), st.lists(st.none())))
def test_a_field_of_another_kind_is_refused(status: MountStatus, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        parse_status(json.dumps(status._asdict() | {name: value}).encode())


@given(statuses, st.sampled_from(MountStatus._fields))
def test_a_missing_field_is_refused(status: MountStatus, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        parse_status(json.dumps({key: value for key, value in status._asdict().items() if key != name}).encode())


@given(statuses)
def test_more_than_we_know_is_left_out(status: MountStatus) -> None:
    assert parse_status(json.dumps(status._asdict() | {"newer": 1}).encode()) == status


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_status(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"null", b'"x"', b"[" * 100_000])
def test_other_documents(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_status(data)
