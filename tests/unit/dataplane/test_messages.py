"""What passes between the object filesystem and the service."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.repo.test_localname import names

from mica.dataplane.messages import (
    MESSAGE_BYTES,
    Kind,
    Question,
    Result,
    format_question,
    format_result,
    parse_question,
    parse_result,
)

u64 = st.integers(0, 2**64 - 1)
questions = st.builds(
    Question, st.sampled_from(Kind), u64, st.integers(0, 0xFFFF), names, u64, st.integers(0, 2**32 - 1)
)


@given(questions)
def test_questions_are_read_back_and_fit_a_message(question: Question) -> None:
    data = format_question(question)
    assert len(data) <= MESSAGE_BYTES
    assert data[:1] != b"{", "it would be taken for JSON"
    assert parse_question(data) == question


@given(st.builds(Result, u64, st.integers(0, 4095)))
def test_results_are_read_back(result: Result) -> None:
    assert parse_result(format_result(result)) == result


@given(st.binary(max_size=80))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"too short|not the name|can't decode"):
        parse_question(b"\x09" + data)
