"""Upper directories of unions, as both kinds of unions sign what they remove. A test module imports the fixtures."""

from pathlib import Path

import pytest
from tests.support.tools import need_root

from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts


@pytest.fixture(params=[AufsWhiteouts(), OverlayWhiteouts()], ids=["aufs", "overlay"])
def signs(request: pytest.FixtureRequest) -> Whiteouts:
    found: Whiteouts = request.param
    if found.signs_are_devices:
        need_root()
    return found


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    (tmp_path / "upper").mkdir()
    return tmp_path / "upper"
