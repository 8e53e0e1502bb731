"""Asking again for longer."""

import pytest
from tests.support.memoryfetcher import MemoryFetcher

from mica.errors import IntegrityError, MicaError, NotFoundError, TemporaryError
from mica.fetch.documents import read_whole
from mica.replicate.patience import PatientFetcher
from mica.streams import Readable


def content(stream: Readable) -> bytes:
    return read_whole(stream, 100)


def failing(fetcher: MemoryFetcher, error: MicaError, times: int) -> None:
    def fail(path: str) -> None:
        if len(fetcher.asked) <= times:
            raise error

    fetcher.before = fail


def test_a_server_that_comes_back_is_asked_again() -> None:
    slept: list[float] = []
    source = MemoryFetcher()
    source.objects["a"] = b"content"
    failing(source, TemporaryError("The server answered 503."), 2)
    assert PatientFetcher(source, (1, 2, 4), sleep=slept.append).fetch("a", content) == b"content"
    assert len(slept) == 2
    assert 0.5 <= slept[0] <= 1
    assert 1 <= slept[1] <= 2


def test_patience_has_an_end() -> None:
    slept: list[float] = []
    source = MemoryFetcher()
    with pytest.raises(TemporaryError, match="not in memory"):
        PatientFetcher(source, (1, 2), sleep=slept.append).fetch("a", content)
    assert len(slept) == 2
    assert len(source.asked) == 3


@pytest.mark.parametrize("error", [NotFoundError("It is not there."), IntegrityError("It has other content.")])
def test_what_will_not_change_is_reported_at_once(error: MicaError) -> None:
    source = MemoryFetcher()
    failing(source, error, 1)
    with pytest.raises(type(error)):
        PatientFetcher(source, (1, 2), sleep=pytest.fail).fetch("a", content)
    assert len(source.asked) == 1
