"""Publishing into a directory and into a bucket of SeaweedFS, beside unpacking the same archive."""

import contextlib
import itertools
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.seaweed import BUCKET, S3Server, real_s3

from benchmarks.harness import Pair, row, rows
from benchmarks.support import FQRN, make_tree, make_weights, mica, remove, timed, workspace
from mica.store.opening import open_store
from mica.store.s3 import UPLOADS_AT_ONCE
from mica.store.s3access import S3Place
from mica.store.s3client import S3Client

_SMALL_FILES = 20_000
_SMALL_BYTES = 6_500
_MIDDLE_FILES = 120
_MIDDLE_BYTES = 2 << 20
_LARGE_BYTES = 128 << 20
_LARGE_FILES = 3
_MB = 1_000_000


def _mixed_tar(work: Path) -> Path:
    """768 MiB: 20,000 small files, 120 of 2 MiB, three of 128 MiB; all compressible as programs are."""
    make_tree(work / "tree" / "small", _SMALL_FILES, _SMALL_BYTES)
    make_tree(work / "tree" / "middle", _MIDDLE_FILES, _MIDDLE_BYTES)
    for number in range(_LARGE_FILES):
        make_weights(work / "tree" / f"large-{number}", _LARGE_BYTES)
    subprocess.run(["tar", "-cf", work / "tree.tar", "-C", work / "tree", "."], check=True)
    remove(work / "tree")
    return work / "tree.tar"


def _large_tar(work: Path) -> Path:
    (work / "large").mkdir()
    make_weights(work / "large" / "model", _LARGE_BYTES * _LARGE_FILES)
    subprocess.run(["tar", "-cf", work / "large.tar", "-C", work / "large", "."], check=True)
    remove(work / "large")
    return work / "large.tar"


def _into_directory(work: Path, tar: Path) -> float:
    """MB/s."""
    turn = work / "directory"
    mica(turn / "state", "repo", "create", FQRN, "--storage", turn / "storage")
    seconds = mica(turn / "state", "repo", "ingest", FQRN, tar, "/data", "--catalog")
    remove(turn)
    return tar.stat().st_size / seconds / _MB


def _into_bucket(work: Path, tar: Path, server: S3Server) -> float:
    """MB/s."""
    turn, storage = work / "bucket", server.new_storage(FQRN)
    credentials = server.options().credentials
    assert credentials is not None
    options = ["--s3-endpoint", server.endpoint, "--s3-credentials", credentials]
    mica(turn / "state", "repo", "create", FQRN, "--storage", storage, *options)
    seconds = mica(turn / "state", "repo", "ingest", FQRN, tar, "/data", "--catalog")
    remove(turn)
    return tar.stat().st_size / seconds / _MB


def _unpacked(work: Path, tar: Path) -> float:
    """MB/s of tar -x."""
    target = work / "unpacked"
    target.mkdir()
    seconds = timed(["tar", "-xf", tar, "-C", target])
    remove(target)
    return tar.stat().st_size / seconds / _MB


@row("server.publish_dir", "MB/s")
@contextlib.contextmanager
def publish_dir() -> Iterator[Pair]:
    """768 MiB of small, middle and large files into a fresh repository in a directory; `tar -x` of the archive."""
    with workspace() as work:
        tar = _mixed_tar(work)
        yield Pair(lambda: _into_directory(work, tar), lambda: _unpacked(work, tar), repeats=3)


@rows(["server.publish_s3", "server.publish_s3_large"], "MB/s")
@contextlib.contextmanager
def publish_s3() -> Iterator[Mapping[str, Pair]]:
    """The same into a bucket of SeaweedFS, beside a directory; and 384 MiB in one file."""
    with workspace() as work, tempfile.TemporaryDirectory() as place, real_s3(Path(place)) as server:
        mixed, large = _mixed_tar(work), _large_tar(work)
        yield {
            "server.publish_s3": Pair(
                lambda: _into_bucket(work, mixed, server), lambda: _into_directory(work, mixed), repeats=3
            ),
            "server.publish_s3_large": Pair(
                lambda: _into_bucket(work, large, server), lambda: _into_directory(work, large), repeats=3
            ),
        }


@row("server.publish_s3_files", "objects/s")
@contextlib.contextmanager
def publish_s3_files() -> Iterator[Pair]:
    """10,000 objects of 6.5 kB put into a fresh bucket; beside the PUTs alone of the same, by obstore in as many
    threads and without a question whether they are there."""
    with tempfile.TemporaryDirectory() as place, real_s3(Path(place)) as server:
        turns = itertools.count()
        contents = [(f"{number:06d}".encode() * (_SMALL_BYTES // 6)) for number in range(10_000)]

        def ours() -> float:
            storage = server.new_storage(FQRN)
            with open_store(storage, server.options()) as store:
                start = time.perf_counter()
                for number, content in enumerate(contents):
                    store.put(f"data/{number % 256:02x}/{number:038x}", content)
                store.sync()
                seconds = time.perf_counter() - start
            return len(contents) / seconds

        def baseline() -> float:
            return _bare_puts(server, f"bare-{next(turns)}", contents)

        yield Pair(ours, baseline, repeats=3, warm_ups=1)


def _bare_puts(server: S3Server, prefix: str, contents: list[bytes]) -> float:
    client = S3Client(S3Place(BUCKET, prefix), server.options())

    def put(numbered: tuple[int, bytes]) -> None:
        client.put(f"data/{numbered[0]:06d}", numbered[1], {}, doing="measure")

    start = time.perf_counter()
    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        list(pool.map(put, enumerate(contents)))
    seconds = time.perf_counter() - start
    return len(contents) / seconds
