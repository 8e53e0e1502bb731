"""Rounds of a recipe: what changed is converted, what failed is named, what left goes after its time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.registry import Reply, ScriptedRegistry, scripted_registry
from tests.support.repositories import Repository, findings, make_repository
from tests.unit.oci.samples import Sample, digest_of, make_sample, make_tar

from mica.convert.converter import ConverterOptions, Platforms
from mica.convert.plan import SilentObserver
from mica.errors import UserError
from mica.oci import mediatypes
from mica.oci.models import Descriptor, format_manifest
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions
from mica.oci.transport import TransportOptions
from mica.sync.recipe import Recipe, parse_wish
from mica.sync.round import Outcome, RoundResult, SyncOptions, SyncRound
from mica.sync.state import SyncState, read_state, write_state

FAST = TransportOptions(attempts=2, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5, longest_wait_s=2)
BASE = make_tar({"etc/name": b"base"})


class Site:
    """A registry, a repository, and what a recipe remembers between rounds."""

    def __init__(self, registry: ScriptedRegistry, repository: Repository) -> None:
        self.registry = registry
        self.repository = repository
        self.state = SyncState()
        self.events: list[dict[str, Any]] = []

    def add(self, tag: str, content: bytes) -> Sample:
        sample = make_sample([BASE, make_tar({"top": content})])
        self.registry.add_blobs(sample.blobs)
        self.registry.add_manifest(tag, mediatypes.OCI_MANIFEST, sample.blobs[sample.manifest.digest])
        self.registry.tags = sorted({*self.registry.tags, tag})
        return sample

    def run(self, *lines: str, grace_s: int = 1000, output: str = "", accept: bool = False) -> RoundResult:
        self.registry.requests.clear()
        registry = RegistryOptions(transport=FAST)
        options = SyncOptions(
            ConverterOptions(SourceOptions(registry=registry)), registry, Platforms(), grace_s, accept
        )
        wishes = tuple(parse_wish(line.replace("HOST", self.registry.host)) for line in lines)
        recipe = Recipe(self.repository.fqrn, wishes, output.replace("HOST", self.registry.host))
        with self.repository.manager() as manager:
            return SyncRound(
                recipe,
                manager,
                self.state,
                options,
                observer=SilentObserver(),
                notify=self.events.append,
                should_stop=lambda: False,
            ).run()

    def layers(self) -> set[str]:
        with self.repository.manager() as manager, manager.snapshot() as catalogs:
            if catalogs.find(b"/.layers") is None:
                return set()
            below = [entry.name for entry in catalogs.children(b"/.layers") if entry.is_directory]
            names = [e for part in below for e in catalogs.children(b"/.layers/" + part)]
            return {e.name.decode() for e in names if e.is_directory}

    def records(self) -> set[str]:
        directory = b"/.images/" + self.registry.host.encode() + b"/team/image"
        with self.repository.manager() as manager, manager.snapshot() as catalogs:
            return {e.name.decode().removesuffix(".json") for e in catalogs.children(directory)}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with scripted_registry() as registry:
        yield Site(registry, make_repository(tmp_path))


def outcomes(result: RoundResult) -> list[Outcome]:
    return [one.outcome for one in result.images]


def hexes(sample: Sample) -> set[str]:
    return {layer.digest[7:] for layer in sample.layers}


def test_changed_tags_are_noticed_by_digest(site: Site) -> None:
    site.add("1", b"one")
    assert outcomes(site.run("http://HOST/team/image:1")) == [Outcome.CONVERTED]
    assert outcomes(site.run("http://HOST/team/image:1")) == [Outcome.UNCHANGED]
    assert {request.method for request in site.registry.requests} == {"HEAD"}
    site.add("1", b"two")
    result = site.run("http://HOST/team/image:1")
    assert [(one.outcome, one.new_layers) for one in result.images] == [(Outcome.CONVERTED, 1)]
    assert [event["status"] for event in site.events] == ["done", "done"]


def test_one_bad_line_never_stops_the_others(site: Site) -> None:
    site.add("1", b"one")
    result = site.run(
        "nonsense", "http://HOST/team/image:none", "http://HOST/team/image:1", "http://HOST/team/image:9.*"
    )
    assert outcomes(result) == [Outcome.FAILED, Outcome.FAILED, Outcome.CONVERTED]
    assert result.exit_code == 1
    errors = [str(one.error) for one in result.images[:2]]
    assert "'nonsense' is not a wish for an image: it does not begin with a registry" in errors[0]
    assert "does not have" in errors[1]


def test_registry_in_trouble_is_temporary(site: Site) -> None:
    site.registry.script["manifests/1"] = [Reply(503)] * 9
    assert site.run("http://HOST/team/image:1").exit_code == 4


def test_patterns_and_doubles(site: Site) -> None:
    for tag in ("3.1", "3.2", "4.0"):
        site.add(tag, tag.encode())
    result = site.run("http://HOST/team/image:3.*", "http://HOST/team/image:3.1")
    assert [one.image.rpartition(":")[2] for one in result.images] == ["3.1", "3.2"]


def test_thin_images_are_pushed(site: Site) -> None:
    site.add("1", b"one")
    output = "http://HOST/thin/$(image)"
    assert site.run("http://HOST/team/image:1", output=output).exit_code == 0
    (path,) = [one.path for one in site.registry.requests if one.method == "PUT" and one.path.endswith("manifests/1")]
    assert path == "/v2/thin/team/image/manifests/1"
    result = site.run("http://HOST/team/image:1", output="http://HOST/other/$(image)")
    assert outcomes(result) == [Outcome.CONVERTED], "another output is a change"


def test_failed_push_is_tried_again(site: Site) -> None:
    site.add("1", b"one")
    site.registry.script["blobs/uploads/"] = [Reply(403)]
    output = "http://HOST/thin/$(image)"
    assert outcomes(site.run("http://HOST/team/image:1", output=output)) == [Outcome.FAILED]
    assert outcomes(site.run("http://HOST/team/image:1", output=output)) == [Outcome.CONVERTED]


def test_what_leaves_is_removed_after_its_time(site: Site, tmp_path: Path) -> None:
    one, two = site.add("1", b"one"), site.add("2", b"two")
    lines = ("http://HOST/team/image:1", "http://HOST/team/image:2")
    site.run(*lines)
    assert site.layers() == hexes(one) | hexes(two)
    result = site.run(lines[0])
    assert (result.removed, result.scheduled) == ((), 1)
    assert site.records() == {"1", "2"}
    result = site.run(lines[0], grace_s=-1)
    assert not result.removed, "its time was set when it left"
    site.state.leaving = dict.fromkeys(site.state.leaving, 0)
    result = site.run(lines[0])
    assert (len(result.removed), result.removed_layers) == (1, 0)
    assert site.records() == {"1"}
    result = site.run(lines[0], grace_s=0)
    assert result.removed_layers == 1
    assert site.layers() == hexes(one)
    assert not findings(site.repository, tmp_path)
    assert outcomes(site.run(*lines)) == [Outcome.UNCHANGED, Outcome.CONVERTED]
    assert not findings(site.repository, tmp_path)


def test_superseded_layers_are_removed_after_their_time(site: Site, tmp_path: Path) -> None:
    site.add("1", b"one")
    site.run("http://HOST/team/image:1")
    new = site.add("1", b"two")
    site.run("http://HOST/team/image:1")
    assert len(site.layers()) == 3
    assert site.run("http://HOST/team/image:1", grace_s=0).removed_layers == 1
    assert site.layers() == hexes(new)
    assert not findings(site.repository, tmp_path)


def test_wanted_again_in_time_stays(site: Site) -> None:
    site.add("1", b"one")
    site.add("2", b"two")
    lines = ("http://HOST/team/image:1", "http://HOST/team/image:2")
    site.run(*lines)
    site.run(lines[0])
    site.run(*lines)
    site.state.leaving = dict.fromkeys(site.state.leaving, 0)
    assert not site.run(*lines).removed
    assert site.records() == {"1", "2"}


@pytest.mark.parametrize("line", ["nonsense", "http://HOST/team/image:2*"])
def test_nothing_leaves_because_a_line_cannot_be_read_or_asked(site: Site, line: str) -> None:
    site.add("1", b"one")
    site.add("2", b"two")
    site.run("http://HOST/team/image:1", "http://HOST/team/image:2")
    site.registry.script["tags/list"] = [Reply(503)] * 9
    site.run("http://HOST/team/image:1", line)
    assert not site.state.leaving


@pytest.mark.parametrize(
    ("left", "leaving"),
    [
        (["0", "1", "2", "3", "4", "5", "6"], 1),
        (["0", "1", "2", "3", "4", "5"], 2),
        (["0", "1", "2", "3", "4"], 0),
        (["0"], 0),
        ([], 0),
    ],
)
def test_list_of_tags_that_loses_much_at_once_schedules_nothing(site: Site, left: list[str], leaving: int) -> None:
    """As it looks when a registry or a proxy in front of it sends a part of the list as the whole."""
    for tag in "01234567":
        site.add(tag, tag.encode())
    line = "http://HOST/team/image:[0-9]"
    assert site.run(line).exit_code == 0
    every, site.registry.tags = site.registry.tags, left
    result = site.run(line)
    assert len(site.state.leaving) == leaving
    if not leaving:
        assert (outcomes(result)[0], result.exit_code) == (Outcome.FAILED, 1)
        lost = 8 - len(left)
        assert f"has lost {lost} images, among them {site.registry.host}/" in str(result.images[0].error)
        assert "--accept-removals" in result.images[0].error.hint  # type: ignore[union-attr]
        assert outcomes(result)[1:] == [Outcome.UNCHANGED] * len(left)
        assert len(site.run(line, accept=True).removed) == 0
        assert len(site.state.leaving) == lost
    site.registry.tags = every
    assert site.run(line).exit_code == 0
    assert not site.run(line, grace_s=0).removed, "what is there again no longer leaves"


def add_signature(site: Site, tag: str, config: str = mediatypes.OCI_CONFIG) -> None:
    """As cosign keeps it: beside the images, with a configuration that looks like one."""
    document = json.dumps({"os": "", "architecture": "", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    layer = Descriptor("application/vnd.dev.cosign.simplesigning.v1+json", digest_of(b"{}"), 2)
    data = format_manifest(Descriptor(config, digest_of(document), len(document)), (layer,))
    site.registry.add_blobs({digest_of(document): document, digest_of(b"{}"): b"{}"})
    site.registry.add_manifest(tag, mediatypes.OCI_MANIFEST, data)
    site.registry.tags = sorted({*site.registry.tags, tag})


@pytest.mark.parametrize("config", [mediatypes.OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json"])
def test_pattern_leaves_out_what_is_no_image(site: Site, config: str) -> None:
    site.add("1", b"one")
    add_signature(site, "1.sig", config)
    result = site.run("http://HOST/team/image:*")
    assert (outcomes(result), result.exit_code) == ([Outcome.CONVERTED, Outcome.LEFT_OUT], 0)
    assert site.records() == {"1"}
    assert outcomes(site.run("http://HOST/team/image:*")) == [Outcome.UNCHANGED] * 2
    assert {request.method for request in site.registry.requests if "manifests" in request.path} == {"HEAD"}
    site.add("1.sig", b"now an image")
    assert outcomes(site.run("http://HOST/team/image:*")) == [Outcome.UNCHANGED, Outcome.CONVERTED]
    add_signature(site, "1.sig", config)
    assert outcomes(site.run("http://HOST/team/image:1.sig")) == [Outcome.FAILED], "no guess but a name"


def test_only_images_of_the_pattern_are_counted(site: Site) -> None:
    """A line that leaves the recipe is meant to, and so is a tag that another line names."""
    for tag in ("a1", "a2", "a3", "b1"):
        site.add(tag, tag.encode())
    assert site.run("http://HOST/team/image:a*", "http://HOST/team/image:b*").exit_code == 0
    assert site.run("http://HOST/team/image:b*").scheduled == 3


def test_memory_survives_and_damage_is_named(site: Site, tmp_path: Path) -> None:
    site.add("1", b"one")
    site.run("http://HOST/team/image:1")
    write_state(tmp_path / "m" / "s.json", site.state)
    assert read_state(tmp_path / "m" / "s.json") == site.state
    assert read_state(tmp_path / "none.json") == SyncState()
    for damage in ("", "[]", '{"version": 2}', '{"version": 1, "images": {"a": 3}}'):
        (tmp_path / "bad.json").write_text(damage)
        with pytest.raises(UserError, match="is not the state of a sync"):
            read_state(tmp_path / "bad.json")


def test_record_that_is_none_keeps_every_layer(site: Site) -> None:
    site.add("1", b"one")
    site.run("http://HOST/team/image:1")
    site.add("1", b"two")
    site.run("http://HOST/team/image:1")
    with site.repository.manager() as manager, manager.transaction() as transaction:
        path = b"/.images/strange.json"
        transaction.catalogs.put(path, transaction.store_file(b"strange.json", b"{}"))
    result = site.run("http://HOST/team/image:1", grace_s=0)
    assert (result.removed_layers, result.exit_code) == (0, 1)
    assert "strange.json is not the record of an image" in str(result.images[-1].error)
    assert len(site.layers()) == 3
