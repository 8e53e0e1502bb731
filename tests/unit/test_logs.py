"""How the log is set up, and handed on to a process that was there before."""

import json
import logging
from collections.abc import Iterator

import pytest

from mica.logs import LogSettings, configure, log_settings, logger


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger("mica")
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers[:], root.level, root.propagate = before


@pytest.mark.parametrize("settings", [LogSettings(), LogSettings("debug", as_json=True)])
def test_settings_can_be_handed_on(settings: LogSettings) -> None:
    logging.getLogger("mica").handlers[:] = []
    assert log_settings() is None
    configure(settings)
    assert log_settings() == settings


def test_a_line_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    logger("mica.some").info("nobody hears it")
    logger("mica.some").error("it is %s", "wrong")
    assert capsys.readouterr().err == "mica: ERROR: it is wrong\n"


def test_a_line_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(as_json=True))
    logger("mica.some").warning("it is %s", "wrong")
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["logger"], line["msg"]) == ("warning", "mica.some", "it is wrong")
