"""Files of an image that are called as directories of objects are: where overlayfs has no data-only layers both are in
one tree."""

from pathlib import Path

import pytest
from tests.support.nodes import publish, running_node, served
from tests.support.tools import need_fuse

from mica.errors import UserError

pytestmark = pytest.mark.system
METHODS = pytest.mark.parametrize("method", ["ordinary", "ordinary-loop"])


@METHODS
def test_names_of_two_hexadecimal_digits_are_shown(tmp_path: Path, method: str) -> None:
    need_fuse()
    files = {"f0": b"file", "ab/inner": b"inner", "other": b"other", "large": bytes(range(256)) * 4000}
    (tmp_path / "image").mkdir()
    with (
        served(publish(tmp_path / "image", files)) as image,
        running_node(tmp_path, image, f"method = '{method}'") as node,
        node.union() as merged,
    ):
        assert {name: (merged / name).read_bytes() for name in files} == files
        assert sorted(path.name for path in merged.iterdir()) == ["ab", "f0", "large", "other"]
        assert [path.name for path in (merged / "ab").iterdir()] == ["inner"]


@METHODS
def test_a_file_of_such_a_name_in_a_lower_layer_is_refused(tmp_path: Path, method: str) -> None:
    """Overlayfs would stop at it when it looks for the content of files above, and show errors."""
    need_fuse()
    (tmp_path / "image").mkdir()
    with (
        served(publish(tmp_path / "image", {"f0": b"file"}, {"x": b"x"})) as image,
        running_node(tmp_path, image, f"method = '{method}'") as node,
        pytest.raises(UserError, match="A lower layer of the image has /f0, which is not a directory"),
        node.union(),
    ):
        pass
