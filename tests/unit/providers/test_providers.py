"""What every provider promises before it asks anybody, and what those give that need no server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.daemon.test_client import node_that

from mica.errors import NotFoundError, UserError, format_error
from mica.fetch.counters import TrafficCounter
from mica.fetch.location import RepositoryLocation
from mica.layers.provider import LayerProvider
from mica.layers.stack import LayerStack, Method
from mica.providers.external import ExternalProvider
from mica.providers.node import NodeProvider, NoProvider
from mica.providers.private import PrivateProvider
from mica.providers.readable import ReadableTrees
from mica.providers.repository import RepositoryProvider
from mica.thin.descriptor import ThinDescriptor, ThinLayer

OURS, OTHER = "images.example.org", "other.example.org"
TREES = {"aa" * 32: "/.layers/aa/aa/layerfs", "bb" * 32: "/.layers/bb/bb/layerfs"}


def image_of(*fqrns: str) -> ThinDescriptor:
    layers = zip(fqrns, TREES.items(), strict=False)
    return ThinDescriptor("docker.io/a/b:1", tuple(ThinLayer(digest, fqrn, path) for fqrn, (digest, path) in layers))


def private(directory: Path) -> LayerProvider:
    return PrivateProvider(
        locations=[RepositoryLocation(OURS, (), ())], cache=directory / "cache", directory=directory / "mnt",
        method=Method.KERNEL, counter=TrafficCounter(),
    )  # fmt: skip


def repository(directory: Path) -> LayerProvider:
    return RepositoryProvider(
        [RepositoryLocation(OURS, (), ())], directory / "cache", directory / "mnt", TrafficCounter()
    )


PROVIDERS: dict[str, Callable[[Path], LayerProvider]] = {
    "node": lambda directory: NodeProvider(directory / "service.sock", frozenset({OURS})),
    "external": lambda directory: ExternalProvider(directory / "cvmfs", frozenset({OURS})),
    "repository": repository,
    "private": private,
    "readable": lambda directory: ReadableTrees(repository(directory), directory),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_layers_of_another_repository_are_refused_before_anything_is_done(name: str, tmp_path: Path) -> None:
    provider = PROVIDERS[name](tmp_path)
    provider.check(image_of(OURS, OURS))
    sentence = f"Images from repository {OTHER} are not allowed here."
    with pytest.raises(UserError, match=sentence) as caught:
        provider.check(image_of(OURS, OTHER))
    assert caught.value.hint == f"Allowed are {OURS}."
    with pytest.raises(UserError, match=sentence), provider.layers(image_of(OURS, OTHER)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_layers_says_so_for_all() -> None:
    for ask in (NoProvider().check, NoProvider().layers):
        with pytest.raises(UserError, match="no node serves layers on this host"):
            ask(image_of(OURS))


def test_trees_of_another_client_are_given_as_they_are(tmp_path: Path) -> None:
    trees = tuple(tmp_path / OURS / path.lstrip("/") for path in TREES.values())
    for tree in trees:
        tree.mkdir(parents=True)
    with ExternalProvider(tmp_path).layers(image_of(OURS, OURS)) as layers:
        assert layers == LayerStack(trees[::-1], untrusted=tmp_path)
    with (
        pytest.raises(NotFoundError, match=f"Repository {OTHER} is not mounted below"),
        ExternalProvider(tmp_path).layers(image_of(OTHER)),
    ):
        pass


@pytest.mark.parametrize(("known", "is_known"), [([OURS], False), ([OURS, OTHER], True), ([], False)])
def test_a_node_knows_an_image_whose_repositories_it_serves(known: list[str], is_known: bool, tmp_path: Path) -> None:
    status = {"repositories": [{"fqrn": fqrn} for fqrn in known]}
    with node_that(tmp_path / "service.sock", status) as asked:
        assert NodeProvider(tmp_path / "service.sock").knows(image_of(OURS, OTHER)) is is_known
    assert asked == [{"op": "status"}]


def test_where_no_node_runs_none_knows_an_image(tmp_path: Path) -> None:
    assert not NodeProvider(tmp_path / "service.sock").knows(image_of(OURS))


def test_a_node_is_told_which_program_starts(tmp_path: Path) -> None:
    refusal = format_error(UserError("No."))
    provider = NodeProvider(tmp_path / "service.sock", program="/bin/x")
    with (
        node_that(tmp_path / "service.sock", refusal) as asked,
        pytest.raises(UserError, match=r"No\."),
        provider.layers(image_of(OURS)),
    ):
        pass
    assert (asked[0]["op"], asked[0]["program"]) == ("layers", "/bin/x")
