"""`mica sync --loop` does not begin with what is wrong."""

from pathlib import Path

from tests.support.cli import mica

RECIPE = """\
version: 1
user: nobody
cvmfs_repo: missing.example.org
output_format: docker://registry.example.org/$(repository)-thin:$(tag)
input:
  - docker://registry.example.org/a:1
"""


def test_a_loop_without_a_recipe_ends(tmp_path: Path) -> None:
    done = mica(tmp_path, "sync", "--loop", tmp_path / "missing.yaml")
    assert (done.code, done.sentence) == (
        1, f"Cannot read the recipe {tmp_path / 'missing.yaml'}: No such file or directory."
    )  # fmt: skip
    (tmp_path / "wrong.yaml").write_text("nonsense")
    assert mica(tmp_path, "sync", "--loop", tmp_path / "wrong.yaml").code == 1


def test_a_loop_without_a_repository_ends(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    done = mica(tmp_path, "sync", "--loop", recipe)
    assert (done.code, done.sentence) == (1, f"There is no repository missing.example.org under {tmp_path}.")
