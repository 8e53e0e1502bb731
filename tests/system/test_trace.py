"""Traces from end to end: recorded by a run, published with the image, followed by nodes that never saw it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.cli import Outcome, mica
from tests.support.dockers import base_layers
from tests.support.nodes import FQRN, Published, publish_tars, running_node, served
from tests.support.tools import need, need_fuse
from tests.support.waiting import eventually

from mica.publish.manager import ReleaseManager
from mica.repo.localname import LocalName
from mica.thin.layout import trace_path

pytestmark = pytest.mark.system


class Site(NamedTuple):
    """A published image with a shell, and a directory."""

    image: Published
    work: Path

    def run(self, *command: str, cache: str = "", options: tuple[str | Path, ...] = ()) -> Outcome:
        own = ("--url", self.image.url, "--key", self.image.publication.key, "--cache", self.work / cache)
        return mica(
            self.work / "state", "run", *(own if cache else ()), *options, self.image.publication.thin, *command
        )

    def convert(self, *options: str | Path) -> Outcome:
        publication = self.image.publication
        source = f"oci:{publication.state.parent / 'image'}"
        return mica(publication.state, "convert", source, FQRN, "--tag", "test/image:1", "--json", *options)

    def traced(self, *command: str) -> Path:
        path = self.work / "trace"
        done = self.run(*command, cache="recording", options=("--trace", path))
        assert done.code == 0, done.stderr
        return path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    need_fuse()
    need("runc", "runc")
    (tmp_path / "published").mkdir()
    with served(publish_tars(tmp_path / "published", base_layers())) as image:
        yield Site(image, tmp_path)


def object_path(name: str) -> str:
    digest = LocalName.parse(name).digest.text
    return f"/{FQRN}/data/{digest[:2]}/{digest[2:]}"


def test_a_run_records_what_its_program_asked_for(site: Site) -> None:
    (program,) = json.loads(site.traced("cat", "/data/7", "/data/8").read_text())["programs"]
    assert program["command"] == ["cat", "/data/7", "/data/8"]
    assert program["trigger"] in [content.partition(" ")[0] for content in program["contents"]]
    sizes = [LocalName.parse(content.partition(" ")[0]).size for content in program["contents"]]
    assert sizes.count(700) == 2, "the two files"


def test_an_image_of_the_repository_is_recorded_by_its_name(site: Site) -> None:
    """Looking up the name brings catalogs into the cache, which nobody counts as content."""
    trace, publication = site.work / "trace", site.image.publication
    done = mica(
        site.work / "state", "run", "--url", site.image.url, "--key", publication.key, "--cache", site.work / "new",
        "--trace", trace, "test/image:1", "cat", "/data/7",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert json.loads(trace.read_text())["programs"]


def test_what_a_trace_names_comes_before_it_is_asked_for(site: Site) -> None:
    trace = site.traced("cat", "/data/7", "/data/8")
    before = json.loads(site.convert().stdout)["revision"]
    assert json.loads(site.convert("--trace", trace).stdout)["revision"] == before + 1
    assert json.loads(site.convert("--trace", trace).stdout)["revision"] == before + 1
    assert json.loads(site.convert().stdout)["revision"] == before + 1, "without any it stays"
    assert mica(site.image.publication.state, "repo", "check", FQRN, "--hash").code == 0
    (program,) = json.loads(trace.read_text())["programs"]
    files = [content for content in program["contents"] if LocalName.parse(content.partition(" ")[0]).size == 700]
    requests = site.image.server.requests
    (site.work / "node").mkdir()
    with running_node(site.work / "node", site.image) as node:
        requests.clear()
        done = site.run("sh", "-c", "echo up", options=("--node", node.directory))
        assert (done.code, done.stdout) == (0, "up\n"), done.stderr
        assert eventually(lambda: set(map(object_path, files)) <= set(requests))
        assert len(requests) == len(set(requests)), "nothing twice"
        requests.clear()
        done = site.run("cat", "/data/7", "/data/8", options=("--node", node.directory))
        assert done.stdout == "data 7\n" * 100 + "data 8\n" * 100
        assert not [path for path in requests if "/data/" in path]


def test_a_damaged_trace_harms_nobody(site: Site) -> None:
    layer = site.image.publication.descriptor["layers"][-1]["digest"]
    with ReleaseManager.open(site.image.publication.state, FQRN) as manager, manager.transaction() as transaction:
        path = trace_path(f"sha256:{layer}")
        transaction.catalogs.put(path, transaction.store_file(path.rpartition(b"/")[2], b'{"version": 1}'))
    done = site.run("echo", "on", cache="cache")
    assert (done.code, done.stdout) == (0, "on\n")
    assert "starts without its traces" in done.stderr


def test_bad_input_is_one_sentence(site: Site) -> None:
    (site.work / "bad").write_text("{}")
    refused = site.convert("--trace", site.work / "bad")
    assert (refused.code, "is not a trace" in refused.sentence) == (1, True)
    trace = site.traced("true")
    refused = site.run("true", cache="recording", options=("--trace", trace))
    assert (refused.code, "is not empty" in refused.sentence) == (2, True)
    refused = site.run("/etc", cache="other", options=("--trace", trace))
    assert refused.code != 0
    assert "/etc cannot be traced" in refused.sentence
