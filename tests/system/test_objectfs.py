"""The object filesystem as the trigger of a real overlayfs: fetched once, opened by the kernel, never wrong bytes."""

import contextlib
import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.memoryfetcher import MemoryFetcher
from tests.support.metadirs import make_metadata_directory
from tests.support.noise import noise
from tests.support.tools import need_fuse, need_linux
from tests.support.waiting import PATIENCE_S

from mica import linux
from mica.cache.cache import Cache
from mica.cache.inventory import Kind as CacheKind
from mica.cache.ledger import Limits
from mica.cache.overlays import let_go
from mica.cache.partfiles import keep_list
from mica.cache.shown import ShownFiles, ShownNames, begin_journal
from mica.dataplane.counts import Counts, SharedCounts, read_counts
from mica.dataplane.messages import Question
from mica.dataplane.objectfs import ERROR_DIRECTORY, ObjectFileSystem, prime
from mica.dataplane.service import Supply
from mica.digest import Algorithm, Suffix
from mica.fetch.client import RepositoryClient
from mica.fuse import abi as fuse_abi
from mica.fuse.session import FuseSession, mount_fuse
from mica.repo.chunklist import format_chunk_list
from mica.repo.localname import LocalName
from mica.repo.objects import Compression, pack
from mica.union.overlay import OverlayOptions, open_overlay, plan_overlay

pytestmark = pytest.mark.system
FRESH_S = dict.fromkeys(CacheKind, 3600.0)
"""Whoever would wait for that, waits in vain."""


class PoolSupplier:
    """What the service does, without a process between."""

    def __init__(self, supply: Supply) -> None:
        self._supply = supply
        self._pool = ThreadPoolExecutor(128)
        self.filesystem: ObjectFileSystem | None = None
        self.between: Callable[[Question], None] = lambda _question: None
        """Runs when a question is answered and the answer not yet used."""

    def ask(self, question: Question) -> None:
        self._pool.submit(self._answer, question)

    def _answer(self, question: Question) -> None:
        assert self.filesystem is not None
        result = self._supply.answer(question)
        self.between(question)
        self.filesystem.supplied(result)

    def close(self) -> None:
        self._pool.shutdown()


@dataclass
class Node:
    """A cache, the object filesystem over it, and what it fetches from."""

    work: Path
    cache: Cache
    fetcher: MemoryFetcher
    supplier: PoolSupplier
    filesystem: ObjectFileSystem
    mountpoint: Path
    session: FuseSession

    @property
    def counts(self) -> Counts:
        return read_counts(self.work / "counts")

    def publish(self, content: bytes) -> LocalName:
        return self.fetcher.publish(content)

    def publish_in_chunks(self, content: bytes, size: int) -> LocalName:
        name, chunks = self.fetcher.publish_in_chunks(content, size)
        keep_list(self.cache, name.digest, format_chunk_list(chunks))
        return name

    @contextlib.contextmanager
    def union(self, files: dict[str, LocalName], label: str = "one", *, writable: bool = False) -> Iterator[Path]:
        need_linux(6, 5, "data-only layers")
        base = self.work / label
        lower = make_metadata_directory(base / "meta", files)
        for name in ("merged", "upper", "work"):
            (base / name).mkdir()
        root = self.cache.root
        data = (root / "objects", self.mountpoint / "0", root / "handover", self.mountpoint / ERROR_DIRECTORY)
        scratch = (base / "upper", base / "work") if writable else (None, None)
        with open_overlay(plan_overlay([lower], *scratch, base / "merged", OverlayOptions(data=data))) as merged:
            yield merged


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    need_fuse()
    mountpoint = tmp_path / "objects"
    mountpoint.mkdir()
    with Cache(tmp_path / "cache", fresh_s=FRESH_S) as cache, contextlib.ExitStack() as stack:
        fetcher = MemoryFetcher()
        client = stack.enter_context(RepositoryClient("some.example.org", fetcher, cache, []))
        supplier = PoolSupplier(Supply(cache, [client]))
        stack.callback(supplier.close)
        counts = stack.enter_context(SharedCounts(tmp_path / "counts"))
        fuse_fd = mount_fuse(mountpoint, name="mica#test")
        device = linux.mounted_device(mountpoint)
        _, journal_fd = begin_journal(cache.root)
        stack.callback(os.close, journal_fd)
        shown = stack.enter_context(ShownFiles(journal_fd, mountpoint))
        filesystem = supplier.filesystem = ObjectFileSystem(cache, 1, supplier, counts, shown)
        session = FuseSession(fuse_fd, filesystem, more_flags=fuse_abi.FUSE_NO_OPEN_SUPPORT)
        filesystem.complete = session.complete
        stack.callback(session.stop, device)
        stack.callback(linux.umount2, mountpoint, linux.MNT_DETACH)
        session.start()
        prime(mountpoint)
        yield Node(tmp_path, cache, fetcher, supplier, filesystem, mountpoint, session)


def test_a_file_is_fetched_when_it_is_opened_and_only_then(node: Node) -> None:
    names = {f"d/f{number}": node.publish(b"content %d" % number) for number in range(3)}
    with node.union(names) as merged:
        assert sorted(os.listdir(merged / "d")) == ["f0", "f1", "f2"]
        assert (merged / "d/f1").stat().st_size == 9
        assert node.fetcher.asked == []
        assert (merged / "d/f1").read_bytes() == b"content 1"
        assert (merged / "d/f1").read_bytes() == b"content 1"
        assert len(node.fetcher.asked) == 1


def test_what_is_cached_never_reaches_the_server(node: Node) -> None:
    names = {f"f{number}": node.publish(b"content %d" % number) for number in range(100)}
    with node.union(names) as merged:
        for name in names:
            (merged / name).read_bytes()
    before = node.counts
    assert before.lookups >= 100
    with node.union(names, "two") as merged:
        assert [(merged / f"f{number}").read_bytes() for number in range(100)] == [
            b"content %d" % number for number in range(100)
        ]
    assert node.counts == before


def test_many_who_open_one_file_at_once_cause_one_download(node: Node) -> None:
    name = node.publish(b"wanted by all")
    node.fetcher.before = lambda path: time.sleep(0.2)
    with node.union({"a": name, "b": name}) as merged, ThreadPoolExecutor(32) as pool:
        files = [merged / ("a" if number % 2 else "b") for number in range(64)]
        assert set(pool.map(Path.read_bytes, files)) == {b"wanted by all"}
    assert len(node.fetcher.asked) == 1


def test_slow_downloads_delay_nothing_else(node: Node) -> None:
    slow = {f"s{number}": node.publish(b"slow %d" % number) for number in range(100)}
    quick = {f"q{number}": node.publish(b"quick %d" % number) for number in range(20)}
    paths = {name.digest.object_path(Suffix.FILE) for name in slow.values()}
    release = threading.Event()
    arrived = threading.Semaphore(0)

    def before(path: str) -> None:
        if path in paths:
            arrived.release()
            release.wait(PATIENCE_S)

    node.fetcher.before = before
    with node.union(slow | quick) as merged, ThreadPoolExecutor(100) as pool:
        waiting = [pool.submit((merged / name).read_bytes) for name in slow]
        for _ in range(40):
            assert arrived.acquire(timeout=PATIENCE_S)
        try:
            for number in range(20):
                assert (merged / f"q{number}").read_bytes() == b"quick %d" % number
            assert not any(future.done() for future in waiting)
        finally:
            release.set()
        assert [future.result() for future in waiting] == [b"slow %d" % number for number in range(100)]


def test_what_cannot_be_fetched_is_an_io_error_and_the_next_open_tries_again(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    name = node.publish(b"comes late")
    path = name.digest.object_path(Suffix.FILE)
    stored = node.fetcher.objects.pop(path)
    with node.union({"late": name, "other": node.publish(b"other")}) as merged:
        with pytest.raises(OSError, match="Input/output error"):
            (merged / "late").read_bytes()
        assert [record.getMessage() for record in caplog.records] == [f"{path} is not in memory."]
        assert (merged / "other").read_bytes() == b"other"
        node.fetcher.objects[path] = stored
        assert (merged / "late").read_bytes() == b"comes late"


def test_what_leaves_before_it_is_opened_is_fetched_again(node: Node) -> None:
    name = node.publish(b"content")
    left = []

    def leave(question: Question) -> None:
        if len(left) < 2:
            os.unlink(node.cache.path(question.name))
            left.append(question.name)

    node.supplier.between = leave
    with node.union({"file": name}) as merged:
        assert (merged / "file").read_bytes() == b"content"
    assert left == [name, name]


def test_what_leaves_again_and_again_is_an_io_error(node: Node) -> None:
    name = node.publish(b"content")
    node.supplier.between = lambda question: os.unlink(node.cache.path(question.name))
    with node.union({"file": name}) as merged, pytest.raises(OSError, match="Input/output error"):
        (merged / "file").read_bytes()


def test_more_than_the_quota_is_read_without_waiting(node: Node) -> None:
    """Whole files and large ones, which the service, the session and the union keep for a while."""
    content = {f"whole{number}": noise(100_000) for number in range(6)}
    content |= {f"large{number}": noise(200_000) for number in range(6)}
    names = {
        path: node.publish(data) if path.startswith("whole") else node.publish_in_chunks(data, 50_000)
        for path, data in content.items()
    }
    node.cache.quota.set_limits(Limits(500_000))
    with node.union(names) as merged:
        for path, data in content.items():
            assert (merged / path).read_bytes() == data


def test_wrong_bytes_are_never_seen(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    name = node.publish(b"right")
    node.fetcher.objects[name.digest.object_path(Suffix.FILE)] = pack(b"wrong", Algorithm.SHA1, Compression.ZLIB).stored
    with node.union({"file": name}) as merged, pytest.raises(OSError, match="Input/output error"):
        (merged / "file").read_bytes()
    assert "has other content" in caplog.text
    assert not os.path.exists(node.cache.path(name))


def test_of_a_large_file_only_the_chunks_that_are_read_are_fetched(node: Node) -> None:
    content = random.Random(1).randbytes(20 << 20)
    name = node.publish_in_chunks(content, 1 << 20)
    with node.union({"large": name}) as merged, open(merged / "large", "rb") as file:
        assert os.pread(file.fileno(), 100, 10 << 20) == content[10 << 20 : (10 << 20) + 100]
        assert 1 <= len(node.fetcher.asked) <= 3
        assert not os.path.exists(node.cache.path(name))
        assert (merged / "large").read_bytes() == content
        assert len(node.fetcher.asked) == 20
    assert Path(node.cache.path(name)).read_bytes() == content
    before = node.counts.reads
    with node.union({"large": name}, "two") as merged:
        assert (merged / "large").read_bytes() == content
    assert node.counts.reads == before, "a whole file is read through the kernel alone"


def test_changing_the_mode_of_a_file_fetches_at_most_that_file(node: Node) -> None:
    names = {f"f{number}": node.publish(b"content %d" % number) for number in range(5)}
    with node.union(names, writable=True) as merged:
        (merged / "f2").chmod(0o600)
        os.chown(merged / "f3", 12, 13)
        assert len(node.fetcher.asked) <= 2
        assert (merged / "f2").read_bytes() == b"content 2"
        with open(merged / "f4", "ab") as file:
            file.write(b" and more")
        assert (merged / "f4").read_bytes() == b"content 4 and more"


def test_a_killed_reader_is_gone_at_once(node: Node) -> None:
    name = node.publish(b"never comes")
    release = threading.Event()
    arrived = threading.Event()

    def before(path: str) -> None:
        arrived.set()
        release.wait(PATIENCE_S)

    node.fetcher.before = before
    with node.union({"file": name}) as merged:
        reader = subprocess.Popen([sys.executable, "-c", f"open({str(merged / 'file')!r}).read()"])
        try:
            assert arrived.wait(PATIENCE_S)
            reader.kill()
            reader.wait(PATIENCE_S / 2)
        finally:
            release.set()


def test_a_container_in_a_container_works(node: Node) -> None:
    """Another overlay on top: with a FUSE file system in the data path the kernel refuses that."""
    names = {"file": node.publish(b"deep"), "large": node.publish_in_chunks(b"x" * 300_000, 100_000)}
    with node.union(names) as merged:
        inner = node.work / "inner"
        for name in ("upper", "work", "merged"):
            (inner / name).mkdir(parents=True)
        with open_overlay(plan_overlay([merged], inner / "upper", inner / "work", inner / "merged")) as top:
            assert (top / "file").read_bytes() == b"deep"
            assert (top / "large").read_bytes() == b"x" * 300_000


def test_names_that_are_none_do_not_exist(node: Node) -> None:
    for path in ("1", "0/zz", "0/ab/not-a-name", "nonsense", "0/ab/..%2f"):
        assert not os.path.lexists(node.mountpoint / path)
    with pytest.raises(OSError) as error:
        os.stat(node.mountpoint / "e/ab")
    assert error.value.errno == errno.EIO
    assert node.fetcher.asked == []


@contextlib.contextmanager
def reading_by_mapping(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that has mapped and closed a file, and prints the digest of all of it when it is told to."""
    code = (
        "import hashlib, mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file: mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "mapped[0]; print('mapped', flush=True); sys.stdin.readline()\n"
        "print(hashlib.sha256(mapped).hexdigest(), end='')\n"
    )
    command = [sys.executable, "-c", code, os.fspath(path)]
    # Not with a working directory or files of the mount: this process serves it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "mapped\n"
        yield program


def test_what_a_program_has_open_is_known_and_let_go_when_it_is_closed(node: Node) -> None:
    content = noise(300_000)
    name = node.publish_in_chunks(content, 100_000)
    with node.union({"large": name}) as merged, ShownNames(node.cache.root) as names:
        with reading_by_mapping(merged / "large") as program:
            for _ in range(3):
                let_go(node.cache.root)
                names.let_go()
                assert names.has(name)
            assert node.cache.quota.sweeper.prune(0).freed == []
            assert program.communicate("go on\n")[0] == hashlib.sha256(content).hexdigest()
        let_go(node.cache.root)
        names.let_go()
        assert not names.has(name)


def test_the_kernel_says_which_files_it_knows(node: Node) -> None:
    name = node.publish_in_chunks(b"x" * 300, 100)
    with node.union({"large": name}) as merged:
        with open(merged / "large", "rb", buffering=0) as file:
            file.read(1)
            inode = os.stat(node.mountpoint / "0" / str(name)).st_ino
            assert node.session.knows_inode(inode)
            assert not node.session.knows_inode(inode + 1)
        let_go(node.cache.root)
        with ShownNames(node.cache.root) as names:
            names.let_go()
        assert not node.session.knows_inode(inode)


def test_a_large_file_that_became_whole_opens_for_as_long_as_the_union_lives(node: Node) -> None:
    """The kernel asks again for a name after some time; a union that was told "no such file" would say ESTALE."""
    content = noise(300_000)
    name = node.publish_in_chunks(content, 100_000)
    with node.union({"large": name}) as merged:
        with open(merged / "large", "rb", buffering=0) as file:
            file.read(1)
        assert (merged / "large").read_bytes() == content
        assert os.path.exists(node.cache.path(name))
        before = node.counts.lookups
        directory = os.stat(node.mountpoint / "0" / str(name)[:2]).st_ino
        assert node.session.invalidate_entry(directory, str(name)[3:].encode())
        assert (merged / "large").read_bytes() == content
        assert node.counts.lookups > before, "the name was asked for again"
