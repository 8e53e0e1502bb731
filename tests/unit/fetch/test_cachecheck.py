"""Checking a cache: content is proved against its name, damage is found, what cannot be proved is compared."""

import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import deflate
import pytest
from tests.support.caches import put
from tests.support.fixture import FQRN, stock_fixture
from tests.support.imagetrees import CHUNK_LISTS, everything
from tests.support.noise import noise
from tests.support.repositories import Repository, ingest, make_repository, read_back
from tests.support.tars import END, member

from mica.cache.cache import Cache
from mica.cache.eviction import Taken
from mica.cache.inventory import Inventory, Item, Kind, take_inventory
from mica.cache.partfiles import PartFile, keep_list
from mica.cache.proof import Content, Prover, Verdict
from mica.digest import Algorithm, Suffix, digest_of
from mica.errors import TemporaryError
from mica.fetch.cachecheck import Finding, Verifier, repair
from mica.fetch.client import RepositoryClient
from mica.fetch.download import Fetcher, LocalFetcher
from mica.metaimage.writer import write_image
from mica.mount.repotree import RepositoryTree
from mica.repo.catalog import NestedCatalog
from mica.repo.chunklist import format_chunk_list
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName, chunked_name
from mica.repo.objectname import ObjectName
from mica.repo.objects import LEVEL, Compression, pack
from mica.store.local import LocalStore
from mica.streams import Readable

ZLIB, NONE = Compression.ZLIB, Compression.NONE


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as cache:
        yield cache


def findings(cache: Cache, *elsewhere: Fetcher) -> dict[str, Finding]:
    found = Verifier(cache.root, elsewhere).verify(take_inventory(cache.root))
    return {finding.item.name: finding for finding in found}


def the_finding(cache: Cache, *elsewhere: Fetcher) -> Finding:
    (finding,) = [f for f in findings(cache, *elsewhere).values() if not f.item.name.startswith("lists/")]
    return finding


class Servers:
    """One object, at one path."""

    where = "memory"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    def fetch(self, path: str, consume: object, *, fresh: bool = False) -> object:
        assert callable(consume)
        if path not in self._objects:
            raise TemporaryError(f"{path} is not here.")
        stream: Readable = io.BytesIO(self._objects[path])
        return consume(stream)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("content", [b"", b"x", b"hello " * 1000, noise(300_000)], ids=len)
def test_content_is_proved_whoever_packed_it(tmp_path: Path, content: bytes, algorithm: Algorithm) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before" + content + b"after")
    prover = Prover()
    ours, stock = pack(content, algorithm, ZLIB).digest, digest_of(zlib.compress(content), algorithm)
    with path.open("rb") as file:
        whole = Content(file.fileno(), 6, len(content))
        assert prover.judge(whole, ours, ZLIB) is Verdict.RIGHT
        assert prover.judge(whole, stock, ZLIB) is Verdict.RIGHT
        assert prover.judge(whole, digest_of(content, algorithm), NONE) is Verdict.RIGHT
        other = Content(file.fileno(), 5, len(content) + 1)
        assert prover.judge(other, ours, ZLIB) is Verdict.UNPROVEN
        assert prover.judge(other, digest_of(content, algorithm), NONE) is Verdict.WRONG
        with pytest.raises(EOFError):
            prover.judge(Content(file.fileno(), 0, len(content) + 100), ours, ZLIB)


def test_what_was_packed_before_levels_were_chosen_is_proved_too(tmp_path: Path) -> None:
    content = noise(300_000)
    (tmp_path / "file").write_bytes(content)
    before = digest_of(deflate.zlib_compress(content, LEVEL))
    assert before != pack(content, Algorithm.SHA1, ZLIB).digest
    with (tmp_path / "file").open("rb") as file:
        whole = Content(file.fileno(), 0, len(content))
        for digest in (before, pack(content, Algorithm.SHA1, ZLIB).digest):
            assert Prover().judge(whole, digest, ZLIB) is Verdict.RIGHT
        assert Prover().judge(Content(file.fileno(), 1, len(content) - 1), before, ZLIB) is Verdict.UNPROVEN


def test_all_of_a_stock_repository_is_proved(cache: Cache) -> None:
    stock = stock_fixture()
    with RepositoryClient(FQRN, LocalFetcher(stock.store), cache, [stock.master_key]) as client:
        manifest = client.update().manifest
        root = NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
        tree = RepositoryTree(client, root)
        for inode in _files(tree):
            file = tree.open(inode)
            file.read(0, 1 << 30)
            file.close()
    found = findings(cache)
    assert len(found) > 100
    assert {finding.verdict for finding in found.values()} == {Verdict.RIGHT}


def _files(tree: RepositoryTree) -> Iterator[int]:
    pending = [1]
    while pending:
        for child in tree.children(pending.pop()):
            mode = child.attributes.mode & 0o170000
            if mode == 0o040000:
                pending.append(child.attributes.inode)
            elif mode == 0o100000:
                yield child.attributes.inode


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repository")
    ingest(repository, member(b"small", b"content") + member(b"large", noise(60_000)) + END)
    return repository


def test_all_of_a_repository_of_ours_is_proved(repository: Repository, tmp_path: Path, cache: Cache) -> None:
    read_back(repository, cache.root)
    found = findings(cache)
    assert {finding.item.kind for finding in found.values()} >= {Kind.OBJECT, Kind.LIST}
    assert {finding.verdict for finding in found.values()} == {Verdict.RIGHT}


def test_another_size_and_other_content_of_a_raw_file_are_wrong(cache: Cache) -> None:
    name = LocalName(digest_of(b"content"), NONE, 7)
    path = Path(cache.path(name))
    path.parent.mkdir()
    for content, reason in (
        (b"content", ""),
        (b"contemt", "it has other content"),
        (b"conten", "it has 6 bytes and not 7"),
    ):
        path.write_bytes(content)
        finding = the_finding(cache)
        assert finding.reason == reason
        assert finding.verdict is (Verdict.WRONG if reason else Verdict.RIGHT)


def test_what_cannot_be_proved_is_compared(cache: Cache) -> None:
    """Compressed by another program: what it made is right, what is in the cache may be or not."""
    content = noise(2000) * 2
    stored = zlib.compress(content, 1)
    name = LocalName(digest_of(stored), ZLIB, len(content))
    path = Path(cache.path(name))
    path.parent.mkdir()
    server = Servers({name.digest.object_path(Suffix.CATALOG): stored})
    path.write_bytes(content)
    assert the_finding(cache).verdict is Verdict.UNPROVEN
    assert the_finding(cache, Servers({})).verdict is Verdict.UNPROVEN
    assert the_finding(cache, Servers({}), server).verdict is Verdict.RIGHT
    lying = Servers({name.digest.object_path(Suffix.FILE): b"something else"})
    assert the_finding(cache, lying, server).verdict is Verdict.RIGHT
    path.write_bytes(content[:-1] + b"!")
    assert the_finding(cache, server).verdict is Verdict.WRONG


@pytest.mark.parametrize("name", ["objects/ab/nonsense", "lists/nonsense", "unsized/nonsense", "parts/abnonsense"])
def test_a_name_that_is_none_is_wrong(cache: Cache, name: str) -> None:
    (cache.root / name).parent.mkdir(exist_ok=True)
    (cache.root / name).write_bytes(b"x")
    (finding,) = findings(cache).values()
    assert finding.verdict is Verdict.WRONG
    assert finding.reason.startswith(("not the name of content", "not a content digest"))


def test_content_of_unknown_size_is_proved(cache: Cache) -> None:
    with cache.adding(ObjectName(pack(b"tags", Algorithm.SHA1, ZLIB).digest, Suffix.HISTORY, ZLIB, None)) as new:
        new.write(b"tags")
        os.close(new.commit())
    assert the_finding(cache).verdict is Verdict.RIGHT
    Path(cache.root / the_finding(cache).item.name).write_bytes(b"tag")
    assert the_finding(cache).verdict is Verdict.UNPROVEN


PIECES = [b"a" * 5000, b"b" * 7000, b"c" * 10]
CONTENT = b"".join(PIECES)


def chunks(compression: Compression = NONE) -> list[Chunk]:
    return [
        Chunk(sum(map(len, PIECES[:number])), len(piece), pack(piece, Algorithm.SHA1, compression).digest)
        for number, piece in enumerate(PIECES)
    ]


def open_part(cache: Cache, *numbers: int, compression: Compression = NONE) -> PartFile:
    """A part with some of its chunks."""
    name = chunked_name(chunks(compression), compression)
    keep_list(cache, name.digest, format_chunk_list(chunks(compression)))
    part = PartFile(cache, name, chunks(compression))
    for number in numbers:
        fd = os.memfd_create("chunk")
        os.write(fd, PIECES[number])
        part.put(number, fd)
        os.close(fd)
    return part


@pytest.mark.parametrize("compression", Compression)
def test_parts_are_proved_by_chunk(cache: Cache, compression: Compression) -> None:
    with open_part(cache, 0, 2, compression=compression):
        assert the_finding(cache).verdict is Verdict.RIGHT
    with open_part(cache, 1, compression=compression) as part:
        assert part.is_whole
        assert the_finding(cache).verdict is Verdict.RIGHT


def test_a_wrong_chunk_of_a_part_is_fetched_again(cache: Cache) -> None:
    with open_part(cache, 0, 2) as part:
        os.pwrite(part.fd, b"!", 12_005)
        finding = the_finding(cache)
        assert (finding.verdict, finding.chunks) == (Verdict.WRONG, (2,))
        assert repair(cache.root, finding, cache.quota.sweeper.remover()) is Taken.FREED
        assert part.missing(0, len(CONTENT)) == [1, 2]
        assert the_finding(cache).verdict is Verdict.RIGHT


def test_a_wrong_chunk_of_a_whole_file_removes_it(cache: Cache) -> None:
    with open_part(cache, 0, 1, 2) as part:
        os.pwrite(part.fd, b"!", 12_005)
    finding = the_finding(cache)
    assert (finding.verdict, finding.chunks) == (Verdict.WRONG, (2,))
    assert repair(cache.root, finding, cache.quota.sweeper.remover()) is Taken.FREED
    assert not [item for item in take_inventory(cache.root).items if not item.name.startswith("lists/")]


def test_a_part_without_its_list_is_of_no_use(cache: Cache) -> None:
    with open_part(cache, 0) as part:
        for path in (cache.root / "lists").iterdir():
            path.unlink()
        finding = the_finding(cache)
        assert finding.verdict is Verdict.WRONG
        assert "chunk list is not here" in finding.reason
        assert repair(cache.root, finding, cache.quota.sweeper.remover()) is Taken.IN_USE, (
            "who fills it relies on its name"
        )
        assert part.missing(0, 1) == []
    assert repair(cache.root, finding, cache.quota.sweeper.remover()) is Taken.FREED
    assert take_inventory(cache.root).items == []


def test_a_whole_file_without_its_list_cannot_be_proved(cache: Cache) -> None:
    open_part(cache, 0, 1, 2).close()
    for path in (cache.root / "lists").iterdir():
        path.unlink()
    assert the_finding(cache).verdict is Verdict.UNPROVEN


def test_a_map_of_another_length_is_wrong(cache: Cache) -> None:
    open_part(cache, 0).close()
    (mark,) = (cache.root / "parts").glob("*.map")
    mark.write_bytes(b"\1\0")
    assert the_finding(cache).reason == "its map is of 2 chunks, and it has 3"


def test_a_list_with_other_content_is_wrong(cache: Cache) -> None:
    open_part(cache).close()
    (path,) = (cache.root / "lists").iterdir()
    path.write_bytes(format_chunk_list(chunks()[:2]))
    found = findings(cache)
    assert found[f"lists/{path.name}"].verdict is Verdict.WRONG
    (part,) = [finding for name, finding in found.items() if name.startswith("parts/")]
    assert part.reason == "its chunk list has other content"


def test_images_are_read_through_and_need_their_lists(cache: Cache) -> None:
    image = cache.root / "images/one"
    with image.open("wb") as file:
        write_image(everything(), file, CHUNK_LISTS)
    for digest, data in CHUNK_LISTS.items():
        keep_list(cache, digest, data)
    image.with_suffix(".json").write_text(json.dumps({"lists": [digest.text for digest in CHUNK_LISTS]}))
    assert the_finding(cache).verdict is Verdict.RIGHT
    gone = next(iter(CHUNK_LISTS)).text
    (cache.root / "lists" / gone).unlink()
    assert the_finding(cache).reason == f"it needs lists/{gone}, which is not here"
    data = bytearray(image.read_bytes())
    data[1030] ^= 1
    image.write_bytes(data)
    finding = the_finding(cache)
    assert finding.verdict is Verdict.WRONG
    with image.open("rb"):
        assert repair(cache.root, finding, cache.quota.sweeper.remover()) in {Taken.HELD, Taken.FREED}
    assert not image.exists()
    assert not image.with_suffix(".json").exists()


def test_what_vanishes_meanwhile_is_left_out(cache: Cache) -> None:
    put(cache, b"x")
    inventory = take_inventory(cache.root)
    for item in inventory.items:
        (cache.root / item.name).unlink()
    assert list(Verifier(cache.root).verify(inventory)) == []


def test_leftovers_are_nobody_s_content(cache: Cache) -> None:
    for name in ("lists/.x.1.tmp", "parts/x.map", "images/x.json"):
        (cache.root / name).write_bytes(b"x")
    assert findings(cache) == {}


def test_what_cannot_be_read_is_wrong(cache: Cache) -> None:
    (cache.root / "lists/link").symlink_to("any")
    link = Item(Kind.LIST, ("lists/link",), 0, 0, 0, 0)
    (finding,) = Verifier(cache.root).verify(Inventory([link], frozenset()))
    assert finding.reason == "it cannot be read: Too many levels of symbolic links"


def test_a_server_s_repository_settles_it(repository: Repository, cache: Cache) -> None:
    read_back(repository, cache.root)
    damaged = next(item for item in take_inventory(cache.root).items if item.kind is Kind.OBJECT)
    path = cache.root / damaged.name
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert findings(cache)[damaged.name].verdict is Verdict.UNPROVEN
    with LocalStore(repository.storage) as store:
        found = findings(cache, LocalFetcher(store))
    assert [name for name, finding in found.items() if finding.verdict is not Verdict.RIGHT] == [damaged.name]
    assert found[damaged.name].verdict is Verdict.WRONG
