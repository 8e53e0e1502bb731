"""Files whose content is not in the repository: by their paths from servers of their own, verified like all."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.externals import add_external
from tests.support.repositories import Repository, find_path, ingest, make_repository, opened_client, read_file
from tests.support.tars import END, member
from tests.support.webserver import Answer, WebServer, closed_port, serving

from mica.fetch.client import RepositoryClient
from mica.mount.magicattributes import MagicAttributes, MountState
from mica.mount.repotree import RepositoryTree
from mica.repo.catalog import NestedCatalog
from mica.repo.objects import Compression

WHOLE = b"as a whole " * 100
PIECES = bytes(range(256)) * 64
ODD = b"odd \xff#?%;"


class Site(NamedTuple):
    repository: Repository
    data: Path
    work: Path

    def tree(self, client: RepositoryClient) -> RepositoryTree:
        manifest = client.update().manifest
        return RepositoryTree(client, NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    repository = make_repository(tmp_path / "repository")
    ingest(repository, member(b"a/b/.cvmfscatalog") + member(b"a/b/inside", b"x") + END)
    data = tmp_path / "data"
    add_external(repository, data, b"/a/b/whole", WHOLE)
    add_external(repository, data, b"/a/b/packed", WHOLE, compression=Compression.ZLIB)
    add_external(repository, data, b"/a/pieces", PIECES, chunk_bytes=4096)
    add_external(repository, data, b"/a/" + ODD, b"odd")
    return Site(repository, data, tmp_path)


@pytest.fixture
def server(site: Site) -> Iterator[WebServer]:
    with serving(site.data) as server:
        yield server


def test_they_are_read_by_their_paths(site: Site, server: WebServer) -> None:
    with opened_client(site.repository, site.work / "cache", external=[server.url]) as client:
        tree = site.tree(client)
        for path, content in (("a/b/whole", WHOLE), ("a/b/packed", WHOLE), ("a/pieces", PIECES), ("a/b/inside", b"x")):
            assert read_file(tree, find_path(tree, path)) == content
        assert read_file(tree, tree.lookup(find_path(tree, "a"), ODD).inode) == b"odd"
        server.requests.clear()
        for path in ("a/b/whole", "a/pieces"):
            read_file(tree, find_path(tree, path))
        assert server.requests == [], "they are in the cache"


def test_only_the_pieces_that_are_read_are_fetched(site: Site, server: WebServer) -> None:
    with opened_client(site.repository, site.work / "cache", external=[server.url]) as client:
        tree = site.tree(client)
        file = tree.open(find_path(tree, "a/pieces"))
        assert file.read(9000, 10) == PIECES[9000:9010]
        file.close()
    assert server.pieces == [("/a/pieces", 8192, 4096)]
    assert set(server.requests) == {"/a/pieces"}


def test_without_a_place_the_sentence_says_what_is_missing(site: Site) -> None:
    with opened_client(site.repository, site.work / "cache") as client:
        tree = site.tree(client)
        for path in ("a/b/whole", "a/pieces"):
            with pytest.raises(OSError, match=f"/{path} in .* is an external file, and no server") as refusal:
                read_file(tree, find_path(tree, path))
            assert "--external-url" in refusal.value.__cause__.hint  # type: ignore[union-attr]
        assert read_file(tree, find_path(tree, "a/b/inside")) == b"x"
        assert client.counter.read().io_errors == 2


@pytest.mark.parametrize("path", ["a/b/whole", "a/pieces"])
def test_wrong_bytes_are_never_served(site: Site, server: WebServer, path: str) -> None:
    file = site.data / path
    changed = bytearray(file.read_bytes())
    changed[10] ^= 1
    file.write_bytes(changed)
    with opened_client(site.repository, site.work / "cache", external=[server.url]) as client:
        tree = site.tree(client)
        with pytest.raises(OSError, match=r"has other content.*It came from 127\.0\.0\.1"):
            read_file(tree, find_path(tree, path))
        assert server.fresh, "it was asked for once more past all caches"


@pytest.mark.parametrize("fault", ["gone", "changed", "missing", "whole files only", "longer"])
def test_the_next_server_is_asked(site: Site, server: WebServer, fault: str) -> None:
    """And the servers of the repository are not left for a fault of these."""
    bad_data = site.work / "bad"
    bad_data.mkdir()
    with (
        serving(site.repository.storage) as own,
        serving(site.data if fault == "whole files only" else bad_data) as bad,
    ):
        bad.gives_pieces = fault != "whole files only"
        if fault in {"changed", "longer"}:
            bad.answers["/a/pieces"] = Answer(body=bytes(4096) if fault == "changed" else PIECES * 1000, status=206)
        first = f"http://{closed_port()}" if fault == "gone" else bad.url
        with opened_client(site.repository, site.work / "cache", url=own.url, external=[first, server.url]) as client:
            tree = site.tree(client)
            assert read_file(tree, find_path(tree, "a/pieces")) == PIECES
            assert client.external_host == server.url
            assert client.connection.host == own.url


def test_what_a_mount_tells_of_them(site: Site, server: WebServer) -> None:
    with opened_client(site.repository, site.work / "cache", external=[server.url]) as client:
        tree = site.tree(client)
        magic = MagicAttributes(client, tree, MountState(client.update().manifest))

        def asked(path: str, name: str) -> bytes | None:
            return magic.get(find_path(tree, path), f"user.{name}".encode())

        assert asked("a/b/whole", "external_file") == b"1"
        assert asked("a/b/whole", "external_url") == f"{server.url}/a/b/whole".encode()
        assert asked("a/b/whole", "external_host") == server.url.encode()
        assert asked("a/b/whole", "hash") is not None
        assert asked("a/pieces", "chunks") == b"4"
        assert asked("a/b/inside", "external_file") == b"0"
        assert asked("a/b/inside", "external_url") is None
        assert asked("a", "external_file") is None


def test_a_packed_one_is_packed_where_it_lies(site: Site) -> None:
    assert zlib.decompress((site.data / "a/b/packed").read_bytes()) == WHOLE
