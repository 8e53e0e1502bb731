"""A new image through a caching proxy: a node that knows an older revision asks past all caches, and at once."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.noise import noise
from tests.support.repositories import Repository, make_repository
from tests.support.webservers import free_port, nginx
from tests.unit.oci.samples import make_sample, make_tar, write_layout

from mica.cache.cache import Cache
from mica.convert.converter import Converter, ConverterOptions, Platforms
from mica.dataplane.nodedirectory import NodeDirectory
from mica.dataplane.preparation import Preparation
from mica.errors import NotFoundError, TemporaryError
from mica.fetch.location import RepositoryLocation, open_repository
from mica.httpbase import serving
from mica.layers.stack import Method
from mica.store.httpserver import RepositoryServer
from mica.thin.descriptor import ThinDescriptor

pytestmark = pytest.mark.engines


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def origin(repository: Repository) -> Iterator[RepositoryServer]:
    with serving(RepositoryServer(("127.0.0.1", 0), {repository.fqrn: repository.storage})) as server:
        yield server


@pytest.fixture
def proxy(origin: RepositoryServer, repository: Repository, tmp_path: Path) -> Iterator[str]:
    """URL of the repository in an nginx that keeps what the server says may be kept; a client that says no-cache gets
    past it, as it does with Squid."""
    port = free_port()
    site = tmp_path / "site.conf"
    site.write_text(f"""
proxy_cache_path {tmp_path}/kept keys_zone=kept:1m;
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://127.0.0.1:{origin.server_address[1]};
        proxy_cache kept;
        proxy_cache_bypass $http_cache_control;
    }}
}}
""")
    with nginx(tmp_path / "nginx", site, port):
        yield f"http://127.0.0.1:{port}/cvmfs/{repository.fqrn}"


def publish(repository: Repository, place: Path) -> ThinDescriptor:
    """A new image; its descriptor as in its thin image."""
    sample = make_sample([make_tar({place.name: noise(1000)})])
    source = f"oci:{write_layout(place, sample)}"
    with repository.manager() as manager:
        converter = Converter(manager, ConverterOptions())
        with converter.opened(source, Platforms(), name=f"tests/{place.name}:1") as opened:
            (descriptor,) = converter.convert(opened).descriptors.values()
        assert descriptor.revision_of(repository.fqrn) == manager.head().revision
    return descriptor


@pytest.fixture
def node(repository: Repository, proxy: str, tmp_path: Path) -> Iterator[Preparation]:
    key = repository.keys / f"{repository.fqrn}.pub"
    location = RepositoryLocation(repository.fqrn, (proxy,), (key,))
    with Cache(tmp_path / "cache") as cache, open_repository(location, tmp_path / "cache") as client:
        yield Preparation(cache, [client], NodeDirectory(tmp_path / "node"), Method.KERNEL)


def test_a_new_image_is_usable_at_once(node: Preparation, repository: Repository, tmp_path: Path) -> None:
    assert len(node.obtain(publish(repository, tmp_path / "first"))) == 1
    second = publish(repository, tmp_path / "second")
    with pytest.raises(NotFoundError):  # what a descriptor without revisions gets, for a minute
        node.obtain(replace(second, revisions=()))
    began = time.monotonic()
    assert len(node.obtain(second)) == 1
    assert time.monotonic() - began < 30, "nothing of a node or a proxy is waited for: those keep things for a minute"
    # From now on everybody knows.
    assert len(node.obtain(replace(second, revisions=()))) == 1


def test_servers_that_lag_behind_are_told_from_images_that_are_gone(
    node: Preparation, origin: RepositoryServer, repository: Repository, tmp_path: Path
) -> None:
    first = publish(repository, tmp_path / "first")
    node.obtain(first)
    requests = origin.served_requests
    assert len(node.obtain(replace(first, revisions=((repository.fqrn, 99),)))) == 1, "it has the layers all the same"
    assert origin.served_requests > requests
    digest = "ab" * 32
    path = f"/.layers/ab/{digest}/layerfs"
    missing = replace(
        first, layers=(replace(first.layers[0], digest=digest, path=path),), revisions=((repository.fqrn, 99),)
    )
    with pytest.raises(TemporaryError, match=r"are in revision 99 of .*, and its servers have revision 2\."):
        node.obtain(missing)
    with pytest.raises(NotFoundError):
        node.obtain(replace(missing, revisions=((repository.fqrn, 2),)))
