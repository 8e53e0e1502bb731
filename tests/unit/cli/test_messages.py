"""Sentences and hints that lead on, of commands that were called wrongly."""

from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.unit.oci.samples import make_sample, make_tar, write_layout


@pytest.mark.parametrize("target", ["oci:foo", "oci-archive:/x.tar", "dir:/x", "docker-archive:x", "s3://bucket/x"])
def test_a_push_to_what_is_no_registry(tmp_path: Path, target: str) -> None:
    done = mica(tmp_path, "push", "oci:thin:1", target)
    assert (done.code, done.sentence) == (
        1,
        f"{target!r} is not in a registry, and mica push writes to registries only.",
    )
    assert "mica convert --output" in done.stderr


def test_a_check_of_an_unknown_name_hints_at_what_check_has(tmp_path: Path) -> None:
    done = mica(tmp_path, "repo", "check", "unknown.example.org")
    assert (done.code, done.sentence) == (
        1,
        "Repository unknown.example.org is neither configured nor published on this host.",
    )
    assert "Give the URL of its root instead of the name" in done.stderr
    assert "--url" in mica(tmp_path, "repo", "ls", "unknown.example.org").stderr


def test_a_wrong_option_is_named_with_its_value(tmp_path: Path) -> None:
    done = mica(tmp_path, "repo", "create", "a.example.org", "--storage", tmp_path / "s", "--chunk-sizes", "1,2")
    assert done.code == 2
    assert "--chunk-sizes" in done.stderr
    assert "'1,2' is not three ascending numbers of KiB" in " ".join(done.stderr.split())


def test_a_configuration_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"[node]\xff")
    done = mica(tmp_path, "node", "--config", tmp_path / "config.toml")
    assert done.code == 1
    assert done.sentence.endswith("config.toml is wrong: it is not UTF-8 text, from byte 6 on.")


def test_a_trace_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("nonsense")
    done = mica(tmp_path, "convert", "oci:none", "a.example.org", "--trace", tmp_path / "trace")
    assert done.code == 1
    assert done.sentence == f"{tmp_path / 'trace'} is not a trace: it is not JSON: Expecting value at line 1, column 1."


@pytest.mark.parametrize("damage", [0, 300, -1])
def test_a_damaged_layer_is_an_integrity_error(tmp_path: Path, damage: int) -> None:
    sample = make_sample([make_tar({"a": b"content"})], kind="")
    layout = write_layout(tmp_path / "layout", sample)
    path = layout / "blobs/sha256" / sample.layers[0].digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[damage] ^= 0xFF
    path.write_bytes(data)
    state = tmp_path / "state"
    assert mica(state, "repo", "create", "a.example.org", "--storage", tmp_path / "storage").code == 0
    done = mica(state, "convert", f"oci:{layout}", "a.example.org", "--tag", "a:1")
    assert (done.code, "does not have the digest" in done.sentence) == (3, True), done.stderr
