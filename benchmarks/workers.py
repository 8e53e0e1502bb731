"""Workers and the committer: how long a commit of a finished layer takes, and what a second worker brings."""

import contextlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.repositories import make_repository
from tests.unit.oci.samples import make_sample, make_tar, write_layout

from benchmarks.harness import Pair, row
from benchmarks.support import FQRN, mica, remove, workspace
from mica.convert.attaching import attach_layer
from mica.convert.staging import StagedFile, StagedLayer
from mica.digest import Algorithm, Digest
from mica.publish.catalogtree import directory_entry, seal_catalog
from mica.publish.manager import ReleaseManager
from mica.repo.catalogwriter import NO_COUNTS, CatalogWriter, Stamp
from mica.repo.entry import Entry, content_flags, flags_for
from mica.repo.objects import Compression
from mica.thin.layout import facts_path, layer_path, metadata_image_path

_LAYERS = 100
_ENTRIES = 10_000
_CONTENT = Digest(bytes(20), Algorithm.SHA1)
_FLAGS = content_flags(Algorithm.SHA1, Compression.ZLIB)


def synthetic_layer(number: int, manager: ReleaseManager, work: Path, *, entries: int) -> StagedLayer:
    """A finished layer of so many entries. Its catalog is real and stored, the contents of its files are not."""
    digest = f"sha256:{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}{number:048x}"
    path = layer_path(digest)
    tree = path + b"/layerfs"
    writer = CatalogWriter.create(work / "layer.sqlite", path, directory_entry(path.rpartition(b"/")[2]))
    writer.put_rows([(tree, directory_entry(b"layerfs"))])
    for start in range(0, entries, 1000):
        directory = tree + b"/directory-%d" % start
        writer.put_rows([(directory, directory_entry(b"directory-%d" % start))])
        writer.put_rows((directory + b"/file-%d" % n, _file(b"file-%d" % n)) for n in range(999))
    sealed = seal_catalog(manager.store, writer, Stamp(1, 0), NO_COUNTS, Algorithm.SHA1)
    names = (metadata_image_path(digest, 2), facts_path(digest))
    beside = tuple(StagedFile(_file(name.rpartition(b"/")[2])) for name in names)
    return StagedLayer(digest, digest, sealed, beside, {})


def _file(name: bytes) -> Entry:
    return Entry(name, 0o100644, 1000, 1_700_000_000, 0, 0, 0, flags_for(0o100644) | _FLAGS, _CONTENT)


@row("server.commit_finished_layer_s", "s")
@contextlib.contextmanager
def commit_finished_layer() -> Iterator[Pair]:
    """A revision with one more layer of 100,000 entries, in a repository of a million entries and 100 layers."""
    with tempfile.TemporaryDirectory() as place, make_repository(Path(place)).manager() as manager:
        work = Path(place)
        with manager.transaction() as transaction:
            for number in range(_LAYERS):
                attach_layer(synthetic_layer(number, manager, work, entries=_ENTRIES), transaction)
        more = iter([synthetic_layer(_LAYERS + n, manager, work, entries=100_000) for n in range(6)])

        def ours() -> float:
            layer = next(more)
            manager.store.sync()
            begun = time.perf_counter()
            with manager.transaction() as transaction:
                attach_layer(layer, transaction)
            return time.perf_counter() - begun

        yield Pair(ours)


@row("server.scaling_2_workers", "x")
@contextlib.contextmanager
def scaling_2_workers() -> Iterator[Pair]:
    """An image of eight layers through one worker, divided by the same through two; each worker has a core of its own,
    as two machines have."""
    with workspace() as work, tempfile.TemporaryDirectory() as place:
        tars = [make_tar({f"d/{n}-{k}": _compressible(1 << 20, n * 40 + k) for k in range(24)}) for n in range(8)]
        layout = write_layout(Path(place) / "image", make_sample(tars))
        turns = itertools.count()

        def seconds(workers: int) -> float:
            turn = work / f"turn-{next(turns)}"
            mica(turn / "state", "repo", "create", FQRN, "--storage", turn / "storage")
            config = turn / "config.toml"
            config.write_text(f'[workers]\nqueue = "sqlite:///{turn / "queue.db"}"\n')
            with contextlib.ExitStack() as stack:
                for core in range(workers):
                    stack.enter_context(_worker(turn / "state", config, core))
                arguments = ("convert", f"oci:{layout}", FQRN, "--tag", "bench/scaling:1", "--jobs", "0")
                taken = mica(turn / "state", *arguments, "--config", config)
            remove(turn)
            return taken

        yield Pair(lambda: seconds(1) / seconds(2), repeats=3)


@contextlib.contextmanager
def _worker(state: Path, config: Path, core: int) -> Iterator[None]:
    command = ["taskset", "-c", str(core), sys.executable, "-m", "mica", "worker", "--jobs", "1", "--config", config]
    environment = {**os.environ, "MICA_STATE": str(state)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()


def _compressible(size: int, seed: int) -> bytes:
    words = [b"%x" % (seed * 7919 + n * n) for n in range(500)]
    chance = random.Random(seed)
    return b" ".join(chance.choices(words, k=size // 6))[:size]
