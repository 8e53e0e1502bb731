"""Whose password `mica sync` pushes with."""

import pytest

from mica.cli.registries import Access
from mica.cli.sync import _output_options
from mica.oci.auth import Credential
from mica.sync.recipe import Recipe


@pytest.mark.parametrize(
    ("output", "place", "expected"),
    [
        ("https://out.example/thin/$(image)", "out.example/thin/a", Credential("robot", "s3cret")),
        ("https://out.example/thin/$(image)", "mirror.example/thin/a", None),
        ("https://out.example/thin/$(image)", "out.example:5000/thin/a", None),
        ("https://$(registry)/thin/$(image)", "out.example/thin/a", None),
    ],
)
def test_password_of_the_output_is_for_the_registry_that_the_recipe_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, output: str, place: str, expected: Credential | None
) -> None:
    for name, value in {
        "DUCC_OUTPUT_REGISTRY_PASS": "s3cret", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    options = _output_options(Recipe("images.example.org", (), output, "robot"), Access())
    assert options.find_credential(place) == expected
