"""Asking a node that comes and goes, with a socket in its place."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mica.daemon.client import check_objects, has_supervisor, open_answer, open_node
from mica.dataplane.nodedirectory import NodeDirectory
from mica.dataplane.sockets import listening
from mica.errors import IntegrityError, NodeAwayError, NotFoundError, TemporaryError, format_error
from mica.files import locked

DIES = None


@contextlib.contextmanager
def node_that(path: Path, *answers: dict[str, Any] | None) -> Iterator[list[dict[str, Any]]]:
    """Gives these answers, a connection each, and is away afterwards; what it was asked."""
    asked: list[dict[str, Any]] = []
    with listening(path) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    asked.append(json.loads(connection.recv(1000)))
                    if answer is not DIES:
                        connection.send(json.dumps(answer).encode())
                        connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
    thread.join(10)
    assert not thread.is_alive()


def test_an_answer_is_held_for_the_block(tmp_path: Path) -> None:
    with node_that(tmp_path / "s", {"x": 1}) as asked:
        with open_answer(tmp_path / "s", "layers", program="p") as answer:
            assert answer == {"x": 1}
        assert asked == [{"op": "layers", "program": "p"}]


@pytest.mark.parametrize("deaths", [1, 2])
def test_one_that_dies_while_it_is_asked_is_asked_again(tmp_path: Path, deaths: int) -> None:
    with node_that(tmp_path / "s", *[DIES] * deaths, {"x": 1}) as asked:
        with open_answer(tmp_path / "s", "layers") as answer:
            assert answer == {"x": 1}
        assert len(asked) == deaths + 1


def test_one_that_dies_of_the_question_is_given_up(tmp_path: Path) -> None:
    with (
        node_that(tmp_path / "s", DIES, DIES, DIES),
        pytest.raises(NodeAwayError, match="ended before it answered"),
        open_answer(tmp_path / "s", "layers"),
    ):
        pass


@pytest.mark.parametrize("kind", [NotFoundError, TemporaryError, IntegrityError])
def test_what_it_answers_is_final(tmp_path: Path, kind: type[Exception]) -> None:
    """Also a server of a repository that does not answer: the node asked it as often as is right."""
    answer = format_error(kind("x"))  # type: ignore[arg-type]
    with node_that(tmp_path / "s", answer) as asked:
        with pytest.raises(kind) as caught, open_answer(tmp_path / "s", "layers"):
            pass
        assert (caught.type, len(asked)) == (kind, 1)


def test_nobody_is_waited_for_where_no_node_is_known(tmp_path: Path) -> None:
    with (
        pytest.raises(NodeAwayError, match="No node answers"),
        open_answer(tmp_path / "s", "status", waits_for_node=False),
    ):
        pass


def test_a_service_whose_supervisor_lives_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    assert not has_supervisor(path)
    back = threading.Event()

    def come_back() -> None:
        with node_that(path, {"x": 1}):
            back.wait(30)

    with locked(tmp_path / "lock", what="The node"):
        assert has_supervisor(path)
        later = threading.Timer(0.5, come_back)
        later.start()
        with open_answer(path, "status", waits_for_node=False) as answer:
            assert answer == {"x": 1}
        back.set()
        later.join()
    assert not has_supervisor(path)


def test_an_answer_that_is_refused_is_asked_for_again(tmp_path: Path) -> None:
    checks: list[None] = []

    def check() -> None:
        checks.append(None)
        if len(checks) < 6:
            raise NodeAwayError("not yet")

    with node_that(tmp_path / "s", *[{"x": number} for number in range(6)]) as asked:
        with open_answer(tmp_path / "s", "layers", check=check) as answer:
            assert answer == {"x": 5}
        assert len(asked) == 6


def test_an_object_filesystem_that_is_not_there_is_temporary(tmp_path: Path) -> None:
    node = NodeDirectory(tmp_path)
    node.create()
    with pytest.raises(NodeAwayError, match="is not there: nothing is mounted"):
        check_objects(node)


def test_a_name_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(NodeAwayError), open_node(tmp_path / "no" / "service.sock"):
        pass
