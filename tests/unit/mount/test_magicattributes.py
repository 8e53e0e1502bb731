"""What a mount tells under names that no listing shows, without a kernel."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.memorytree import MemoryTree, Node, directory
from tests.support.noise import noise
from tests.support.repositories import Repository, ingest, make_repository, opened_client
from tests.support.tars import END, member, pax
from tests.support.webserver import serving

from mica import __version__
from mica.digest import digest_of
from mica.fetch.client import RepositoryClient
from mica.fuse import abi
from mica.fuse.abi import Opcode
from mica.fuse.dispatch import Dispatcher
from mica.fuse.passthrough import NOT_WANTED, BackingFiles
from mica.fuse.tree import ROOT_INODE, Tree
from mica.fuse.treefs import ListedMagic, Magic, TreeFileSystem
from mica.mount.magicattributes import MagicAttributes, MountState, Visibility
from mica.mount.repotree import RepositoryTree
from mica.mount.status import MountStatus, parse_status
from mica.publish.rules import ObjectRules
from mica.repo.catalog import NestedCatalog
from mica.repo.cutting import ChunkRule
from mica.repo.objects import Compression

CONTENT = b"some content " * 50
LARGE = noise(60_000)
ARCHIVE = (
    member(b"file", CONTENT)
    + member(b"nested/.cvmfscatalog")
    + member(b"nested/large", LARGE)
    + member(b"link", b"", type_flag=b"2", link=b"$(NAME:-x)/lib")
    + pax([(b"SCHILY.xattr.user.hash", b"its own")])
    + member(b"honest", b"x")
    + END
)


class Asked:
    """A tree and its magic, asked by path; names without `user.`."""

    def __init__(self, client: RepositoryClient, backing: BackingFiles | None = None) -> None:
        manifest = client.update().manifest
        root = NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
        self.client = client
        self.state = MountState(manifest, backing=backing)
        self.tree = RepositoryTree(client, root, variables={})
        self.magic = MagicAttributes(client, self.tree, self.state)

    def inode(self, path: str) -> int:
        inode = ROOT_INODE
        for name in path.split("/") if path else ():
            inode = self.tree.lookup(inode, name.encode()).inode
        return inode

    def __call__(self, name: str, path: str = "") -> str | None:
        value = self.magic.get(self.inode(path), f"user.{name}".encode())
        return None if value is None else value.decode()

    def read(self, path: str, size: int = 1 << 20) -> None:
        file = self.tree.open(self.inode(path))
        file.read(0, size)
        file.close()

    @property
    def status(self) -> MountStatus:
        value = self("mica.status")
        assert value is not None
        return parse_status(value.encode())


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repository")
    ingest(repository, ARCHIVE)
    return repository


@pytest.fixture
def asked(repository: Repository, tmp_path: Path) -> Iterator[Asked]:
    with opened_client(repository, tmp_path / "cache") as client:
        yield Asked(client)


def test_what_holds_for_every_path(asked: Asked, repository: Repository) -> None:
    manifest = asked.state.manifest
    for path in ("", "file", "nested/large", "link"):
        assert asked("fqrn", path) == repository.fqrn
        assert asked("revision", path) == "2"
        assert asked("root_hash", path) == manifest.root_catalog.text
        assert asked("version", path) == __version__
        assert asked("pid", path) == str(os.getpid())
        assert asked("uptime", path) == "0"
        assert asked("host", path) == str(repository.storage)
        assert asked("proxy", path) == "DIRECT"
        assert (asked("timeout", path), asked("timeout_direct", path)) == ("0", "0")


def test_how_long_the_revision_is_shown(asked: Asked) -> None:
    assert asked("expires") == "never (fixed root catalog)"
    asked.state.looks_again_at = asked.state.started_at + 1000
    assert asked("expires") == "16"
    asked.state.looks_again_at = asked.state.started_at - 1000
    assert asked("expires") == "0"


def test_counts(asked: Asked) -> None:
    asked.tree.attributes(ROOT_INODE)
    assert asked("nclg") == "1"
    assert (asked("nopen"), asked("ndownload"), asked("nioerr"), asked("rx")) == ("0", "1", "0", "0")
    asked.read("file")
    asked.read("nested/large")
    assert asked("nclg") == "2"
    assert asked("nopen") == "2"
    assert asked("ndownload") == str(2 + 1 + len(asked.tree.objects(asked.inode("nested/large"))))
    used, most = asked("usedfd"), asked("maxfd")
    assert used is not None
    assert most is not None
    assert 3 < int(used) <= int(most)


def test_an_error_is_counted(asked: Asked, repository: Repository) -> None:
    (name,) = asked.tree.objects(asked.inode("file"))
    (repository.storage / name.digest.object_path(name.suffix)).unlink()
    with pytest.raises(OSError):
        asked.read("file")
    assert asked("nioerr") == "1"


def test_over_http_without_the_password(repository: Repository, tmp_path: Path) -> None:
    with serving(repository.storage) as server:
        url = server.url.replace("http://", "http://user:secret@") + "/"
        with opened_client(repository, tmp_path / "cache", url=url) as client:
            asked = Asked(client)
            asked.read("file")
            assert asked("host") == server.url + "/"
            assert (asked("timeout"), asked("timeout_direct")) == ("2", "2")
            assert int(asked("rx") or 0) * 1024 <= client.counter.read().transferred_bytes
            assert "secret" not in (asked("mica.status") or "secret")


def test_counters_of_a_catalog_and_of_all(asked: Asked) -> None:
    everything = asked("repo_counters")
    assert everything is not None
    assert "regular,4\n" in everything
    assert "nested,1\n" in everything
    assert "symlink,1\n" in everything
    for path in ("nested", "nested/large"):
        counters = asked("catalog_counters", path)
        assert counters is not None
        first, second, *rest = counters.splitlines()
        assert first == f"catalog_hash: {asked.tree.catalog_of(asked.inode('nested'))[0]}"
        assert second == "catalog_mountpoint: /nested"
        assert "regular,2" in rest
    assert "catalog_mountpoint: /\n" in (asked("catalog_counters", "file") or "")


def test_a_whole_file(asked: Asked) -> None:
    (name,) = asked.tree.objects(asked.inode("file"))
    assert asked("hash", "file") == name.digest.text
    assert asked("chunks", "file") == "1"
    assert asked("chunk_list", "file") == f"hash,offset,size\n{name.digest},0,{len(CONTENT)}\n"
    assert asked("compression", "file") == "zlib"
    assert asked("mica.local", "file") == f"0 of {len(CONTENT)}"
    assert asked("lhash", "file") == "Not in cache"
    asked.read("file")
    assert asked("mica.local", "file") == f"{len(CONTENT)} of {len(CONTENT)}"
    assert asked("lhash", "file") == name.digest.text


def test_a_file_in_chunks(asked: Asked) -> None:
    objects = asked.tree.objects(asked.inode("nested/large"))
    assert asked("hash", "nested/large") is None
    assert asked("lhash", "nested/large") is None
    assert asked("chunks", "nested/large") == str(len(objects))
    listed = asked("chunk_list", "nested/large")
    assert listed is not None
    rows = [line.split(",") for line in listed.splitlines()]
    assert rows[0] == ["hash", "offset", "size"]
    assert [row[0] for row in rows[1:]] == [name.digest.text for name in objects]
    ends = [int(row[1]) + int(row[2]) for row in rows[1:]]
    assert [int(row[1]) for row in rows[1:]] == [0, *ends[:-1]]
    assert ends[-1] == len(LARGE)
    assert asked("mica.local", "nested/large") == f"0 of {len(LARGE)}"
    asked.read("nested/large", 1)
    assert asked("mica.local", "nested/large") == f"{objects[0].size} of {len(LARGE)}"


@pytest.mark.parametrize("path", ["", "nested", "link"])
@pytest.mark.parametrize("name", ["hash", "lhash", "chunks", "chunk_list", "compression", "mica.local"])
def test_what_only_files_have(asked: Asked, path: str, name: str) -> None:
    assert asked(name, path) is None


def test_a_link_as_it_was_published(asked: Asked) -> None:
    inode = asked.inode("link")
    assert asked.tree.readlink(inode) == b"x/lib"
    assert asked.magic.get(inode, b"xfsroot.rawlink") == b"$(NAME:-x)/lib"
    assert asked.magic.get(asked.inode("file"), b"xfsroot.rawlink") is None


def test_links_stand_for_something_only_where_variables_are_given(asked: Asked) -> None:
    root = NestedCatalog(b"", asked.state.manifest.root_catalog, asked.state.manifest.root_catalog_size)
    inode = asked.inode("link")
    given: dict[str, str] = {"NAME": "\udcff"}  # not UTF-8: a byte of the environment
    assert RepositoryTree(asked.client, root, variables=given).readlink(inode) == b"\xff/lib"
    without = RepositoryTree(asked.client, root)
    assert without.readlink(inode) == b"$(NAME:-x)/lib"
    assert without.attributes(inode).size == len(b"$(NAME:-x)/lib")


@pytest.mark.parametrize(
    "name",
    [b"", b"user.", b"user.none", b"user.fqrn ", b"USER.fqrn", b"trusted.fqrn", b"user.fqrn~", b"user.fqrn~1", b"fqrn",
     b"user.fqrn~-1", b"user.fqrn~1000000", b"user.fqrn\0", b"security.capability", b"user.rawlink", b"\xff"],
)  # fmt: skip
def test_other_names(asked: Asked, name: bytes) -> None:
    assert asked.magic.get(ROOT_INODE, name) is None


def test_long_values_come_in_pages(tmp_path: Path) -> None:
    rules = ObjectRules(chunking=ChunkRule(32, 48, 64))
    repository = make_repository(tmp_path / "repository", rules=rules)
    content = noise(48 * 2000)
    ingest(repository, member(b"file", content) + END)
    with opened_client(repository, tmp_path / "cache") as client:
        asked = Asked(client)
        count = asked("chunk_list~?", "file")
        assert count is not None
        number = int(count.removeprefix("num_pages, "))
        assert number > 1
        pages = [asked(f"chunk_list~{page}", "file") or "" for page in range(number)]
        assert asked("chunk_list", "file") == pages[0]
        assert asked(f"chunk_list~{number}", "file") is None
        assert all(0 < len(page) <= 40_000 and page.endswith("\n") for page in pages)
        lines = "".join(pages).splitlines()
        assert len(lines) == 1 + len(asked.tree.objects(asked.inode("file")))
        assert sum(int(line.rpartition(",")[2]) for line in lines[1:]) == len(content)
    assert asked("fqrn~?") == "num_pages, 1"


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.ZLIB])
def test_the_local_copy_hashed_again(tmp_path: Path, compression: Compression) -> None:
    repository = make_repository(tmp_path / "repository", rules=ObjectRules(compression=compression))
    content = noise(150_000) + b"compressible " * 1000
    ingest(repository, member(b"file", content) + END)
    with opened_client(repository, tmp_path / "cache") as client:
        asked = Asked(client)
        asked.read("file")
        assert asked("lhash", "file") == asked("hash", "file")
        (name,) = asked.tree.objects(asked.inode("file"))
        (path,) = (
            path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == len(content)
        )
        changed = bytes([content[0] ^ 1]) + content[1:]
        path.write_bytes(changed)
        stored = changed if compression is Compression.NONE else zlib.compress(changed)
        assert asked("lhash", "file") == digest_of(stored).text != name.digest.text


def test_nothing_is_fetched_to_answer(asked: Asked) -> None:
    inodes = [asked.inode(path) for path in ("", "file", "nested/large", "link")]
    before = asked.client.counter.read()
    for inode in inodes:
        for name in [*asked.magic._of_mount, *asked.magic._of_inode]:
            asked.magic.get(inode, name.encode())
    assert asked.client.counter.read() == before


def test_the_status(asked: Asked) -> None:
    asked.read("file")
    status = asked.status
    traffic = asked.client.counter.read()
    assert (status.fqrn, status.revision, status.follows) == (asked.state.manifest.fqrn, 2, False)
    assert status.root_catalog == asked.state.manifest.root_catalog.text
    assert (status.files_opened, status.objects_fetched, status.io_errors) == (1, traffic.objects_fetched, 0)
    assert os.path.isdir(status.cache)
    assert status.passthrough_refusal == NOT_WANTED
    asked.state.looks_again_at = 1.0
    assert asked.status.follows


def test_the_status_tells_of_passthrough(repository: Repository, tmp_path: Path) -> None:
    backing = BackingFiles(least_bytes=1)
    with opened_client(repository, tmp_path / "cache") as client:
        asked = Asked(client, backing)
        assert asked.status.passthrough_refusal == backing.refusal != ""
        backing.connect(lambda request, argument: 7)
        with open(repository.storage / ".cvmfspublished", "rb") as file:
            backing.open(5, file.fileno())
        assert (asked.status.passthrough_refusal, asked.status.passthrough_open_files) == ("", 1)
        assert asked.status.passthrough_from_bytes == 1


class Adapter:
    """Extended attributes through the file system adapter."""

    def __init__(self, tree: Tree, magic: Magic, listed: ListedMagic = lambda _inode: []) -> None:
        self._dispatcher = Dispatcher(
            TreeFileSystem(tree, entry_timeout_s=1, attr_timeout_s=1, magic=magic, listed_magic=listed)
        )

    def ask(self, opcode: Opcode, inode: int, body: bytes) -> bytes:
        message = abi.format_request(abi.InHeader(0, opcode, 2, inode, 0, 0, 0), body)
        answer = self._dispatcher.answer(memoryview(message), memoryview(b""))
        assert answer is not None
        error = abi.parse_out_header(answer.header).error
        if error:
            raise OSError(-error, os.strerror(-error))
        return bytes(answer.payload)

    def get(self, inode: int, name: bytes) -> bytes:
        return self.ask(Opcode.GETXATTR, inode, abi.format_getxattr_in(abi.GetxattrIn(1 << 16, name)))

    def list(self, inode: int) -> list[bytes]:
        return abi.parse_xattr_names(self.ask(Opcode.LISTXATTR, inode, abi.format_listxattr_in(1 << 16)))


def test_the_root_lists_what_is_told_of_the_mount(asked: Asked) -> None:
    adapter = Adapter(asked.tree, asked.magic.get, asked.magic.listed)
    names = adapter.list(ROOT_INODE)
    assert {b"user.fqrn", b"user.revision", b"user.catalog_counters", b"user.mica.status"} <= set(names)
    assert all(adapter.get(ROOT_INODE, name) for name in names)
    for path in ("file", "nested", "link"):
        assert adapter.list(asked.inode(path)) == []
    assert adapter.list(asked.inode("honest")) == [b"user.hash"]


@pytest.mark.parametrize("visibility", list(Visibility))
def test_where_listings_show_them(asked: Asked, visibility: Visibility) -> None:
    magic = MagicAttributes(asked.client, asked.tree, asked.state, visibility)
    adapter = Adapter(asked.tree, magic.get, magic.listed)
    assert bool(adapter.list(ROOT_INODE)) == (visibility is not Visibility.NEVER)
    for path, name in (("file", b"user.hash"), ("nested", b"user.fqrn"), ("link", b"xfsroot.rawlink")):
        assert (name in adapter.list(asked.inode(path))) == (visibility is Visibility.ALWAYS)
    assert b"user.hash" not in adapter.list(ROOT_INODE)
    if visibility is Visibility.ALWAYS:
        for path in ("file", "nested/large", "nested"):
            assert all(adapter.get(asked.inode(path), name) for name in adapter.list(asked.inode(path)))
    assert adapter.list(asked.inode("honest")).count(b"user.hash") == 1


def test_listings_show_what_the_file_has_and_no_more(asked: Asked) -> None:
    adapter = Adapter(asked.tree, asked.magic.get)
    assert adapter.get(asked.inode("file"), b"user.fqrn") == asked.state.manifest.fqrn.encode()
    assert adapter.list(asked.inode("file")) == adapter.list(ROOT_INODE) == []
    assert adapter.list(asked.inode("honest")) == [b"user.hash"]
    with pytest.raises(OSError, match="No data"):
        adapter.get(asked.inode("file"), b"user.none")


def test_a_files_own_attribute_counts_first(asked: Asked) -> None:
    assert Adapter(asked.tree, asked.magic.get).get(asked.inode("honest"), b"user.hash") == b"its own"


def test_of_the_mount_the_root_says_what_the_mount_says() -> None:
    published = {b"user.told": b"a lie", b"user.other": b"kept"}
    tree = MemoryTree(directory({b"file": Node(xattrs=published)}, xattrs=published))
    adapter = Adapter(tree, lambda _, name: b"the truth" if name == b"user.told" else None)
    assert adapter.get(ROOT_INODE, b"user.told") == b"the truth"
    assert adapter.get(ROOT_INODE, b"user.other") == b"kept"
    assert adapter.get(tree.inode(b"file"), b"user.told") == b"a lie"
