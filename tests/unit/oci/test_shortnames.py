"""Names without a scheme, and without a registry: what they stand for when an image is converted."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.registry import Reply, ScriptedRegistry, scripted_registry
from tests.unit.oci.samples import make_sample, write_layout

from mica.errors import NotFoundError, TemporaryError, UserError
from mica.oci import mediatypes
from mica.oci.reference import full_names
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions, expand_source
from mica.oci.transport import TransportOptions

FAST = TransportOptions(attempts=2, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5)
SAMPLE = make_sample([])


def expand(text: str, *registries: ScriptedRegistry) -> list[str]:
    def names(name: str) -> Sequence[str]:
        return tuple(f"{registry.host}/{name}" for registry in registries) or full_names(name)

    options = RegistryOptions(find_names=names, transport=FAST)
    return expand_source(text, options=SourceOptions(registry=options))


def fill(registry: ScriptedRegistry, *tags: str) -> None:
    registry.tags = list(tags)
    for tag in tags:
        registry.add_manifest(tag, mediatypes.OCI_MANIFEST, SAMPLE.blobs[SAMPLE.manifest.digest])


def test_first_registry_that_has_it_counts() -> None:
    with scripted_registry() as one, scripted_registry() as two:
        fill(one, "1")
        fill(two, "1", "2")
        assert expand("app:1", one, two) == [f"docker://{one.host}/app:1"]
        assert expand("app:2", one, two) == [f"docker://{two.host}/app:2"]
        assert expand("app:3", one, two) == [f"docker://{two.host}/app:3"], "and its refusal is told"
        assert expand("app:2*", one, two) == [f"docker://{two.host}/app:2"]
        assert expand("app:*", one, two) == [f"docker://{one.host}/app:1"]
        with pytest.raises(NotFoundError, match=f"{two.host}/app has no tag that matches"):
            expand("app:9*", one, two)


def test_registry_that_cannot_be_asked_is_no_reason_to_take_another_s_image() -> None:
    with scripted_registry() as one, scripted_registry() as two:
        fill(two, "1")
        one.script["manifests/1"] = [Reply(503)] * 9
        with pytest.raises(TemporaryError, match=one.host):
            expand("app:1", one, two)


def test_registry_that_lets_nobody_in_is_gone_past() -> None:
    with scripted_registry() as one, scripted_registry() as two:
        fill(two, "1")
        one.script["manifests/1"] = [Reply(403)] * 9
        assert expand("app:1", one, two) == [f"docker://{two.host}/app:1"]


def test_names_of_which_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expand("debian:12") == ["debian:12"], "which open_choice refuses"
    assert expand("localhost:5000/a/b") == ["docker://localhost:5000/a/b"]
    assert expand("docker://debian:12") == ["docker://debian:12"]
    for other in ("oci:dir:tag", "docker-archive:x.tar", "nfs://x/y", "nonsense", ""):
        assert expand(other) == [other]
    write_layout(tmp_path / "a.example" / "b", SAMPLE)
    assert expand("a.example/c") == ["docker://a.example/c"]
    assert expand("a.example/b") == ["a.example/b"], "a directory is no name"


def test_names_with_a_scheme_are_not_short(tmp_path: Path) -> None:
    """`docker://` means what it means to skopeo."""
    with scripted_registry() as one:
        assert expand("docker://app:1", one) == ["docker://app:1"]
        assert not one.requests


def test_refusal_of_a_short_name_is_the_user_s() -> None:
    def refuse(name: str) -> Sequence[str]:
        raise UserError(f"{name} has no registry in front.")

    options = SourceOptions(registry=RegistryOptions(find_names=refuse))
    with pytest.raises(UserError, match="app has no registry in front"):
        expand_source("app", options=options)


@pytest.mark.parametrize("source", ["dir:/x", "containers-storage:debian:12", "sif:image.sif"])
def test_sources_of_other_programs_are_no_names(source: str) -> None:
    with pytest.raises(UserError, match="is a source that mica does not read") as caught:
        expand_source(source)
    assert "docker-archive:FILE" in caught.value.hint
