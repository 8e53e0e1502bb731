"""Options of `mica repo create` as values."""

import pytest
import typer

from mica.cli.repo import _chunk_rule
from mica.repo.cutting import FINE_RULE, STANDARD_RULE


def test_chunk_sizes() -> None:
    assert _chunk_rule("4096,8192,16384") == STANDARD_RULE
    assert _chunk_rule("256,512,1024,64") == FINE_RULE


@pytest.mark.parametrize("text", ["", "1", "1,2", "3,2,1", "1,2,x", "1,2,3,3", "1,2,3,4,5", "1,2,3,"])
def test_other_chunk_sizes_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="three ascending numbers"):
        _chunk_rule(text)
