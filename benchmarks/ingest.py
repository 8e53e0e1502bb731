"""Publishing an archive beside unpacking it."""

import contextlib
import hashlib
import io
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.harness import Pair, row, rows
from benchmarks.support import FQRN, make_tree, make_weights, mica, peak_rss_mb, processor_s, remove, timed, workspace
from mica.repo.cutting import FINE_RULE, read_pieces

_FILES = 10_000
_FILE_BYTES = 5_000
_WEIGHTS_BYTES = 4 << 30
_CUT_BYTES = 64 << 20


def _tar_of(work: Path, files: int, size: int) -> Path:
    make_tree(work / "tree", files, size)
    subprocess.run(["tar", "-cf", work / "tree.tar", "-C", work / "tree", "."], check=True)
    return work / "tree.tar"


@row("ingest.small10k", "entries/s")
@contextlib.contextmanager
def small_files() -> Iterator[Pair]:
    """10,000 small files into a repository, each time into a fresh one; `tar -x` of the same archive."""
    with workspace() as work:
        tar = _tar_of(work, _FILES, _FILE_BYTES)
        turns = itertools.count()

        def ours() -> float:
            turn = work / f"turn-{next(turns)}"
            mica(turn / "state", "repo", "create", FQRN, "--storage", turn / "storage")
            seconds = mica(turn / "state", "repo", "ingest", FQRN, tar, "/data", "--catalog")
            remove(turn)
            return _FILES / seconds

        def baseline() -> float:
            target = work / f"turn-{next(turns)}"
            target.mkdir()
            seconds = timed(["tar", "-xf", tar, "-C", target])
            remove(target)
            return _FILES / seconds

        yield Pair(ours, baseline)


@row("ingest.weights_4g", "MB/s")
@contextlib.contextmanager
def weights() -> Iterator[Pair]:
    """A file of 4 GiB as of a model's weights, in a tar, into a fresh repository; `tar -x` of it."""
    with workspace() as work:
        (work / "tree").mkdir()
        make_weights(work / "tree" / "model", _WEIGHTS_BYTES)
        tar = work / "tree.tar"
        subprocess.run(["tar", "-cf", tar, "-C", work / "tree", "--remove-files", "model"], check=True)
        turns = itertools.count()

        def ours() -> float:
            turn = work / f"turn-{next(turns)}"
            mica(turn / "state", "repo", "create", FQRN, "--storage", turn / "storage")
            seconds = mica(turn / "state", "repo", "ingest", FQRN, tar, "/data")
            remove(turn)
            return _WEIGHTS_BYTES / seconds / 1e6

        def baseline() -> float:
            target = work / f"turn-{next(turns)}"
            target.mkdir()
            seconds = timed(["tar", "-xf", tar, "-C", target])
            remove(target)
            return _WEIGHTS_BYTES / seconds / 1e6

        yield Pair(ours, baseline, repeats=3)


@rows(("ingest.weights_cpu", "ingest.programs_cpu"), "s")
@contextlib.contextmanager
def small_pieces() -> Iterator[Mapping[str, Pair]]:
    """Processor time of publishing 256 MiB of weights, and 128 MiB of programs, in the pieces that mica cuts; the same
    in those of the stock server."""
    with workspace() as work:
        for kind in ("weights", "programs"):
            (work / kind).mkdir()
        make_weights(work / "weights" / "model", 256 << 20)
        program = Path(sys.executable).resolve().read_bytes()
        with (work / "programs" / "program").open("wb") as file:
            while file.tell() < 128 << 20:
                file.write(program + b"%d" % file.tell())
        for kind in ("weights", "programs"):
            subprocess.run(["tar", "-cf", work / f"{kind}.tar", "-C", work / kind, "."], check=True)
        turns = itertools.count()

        def spent_s(kind: str, *options: str) -> float:
            turn = work / f"turn-{next(turns)}"
            mica(turn / "state", "repo", "create", FQRN, "--storage", turn / "storage", *options)
            command = [sys.executable, "-m", "mica", "repo", "ingest", FQRN, work / f"{kind}.tar", "/data"]
            seconds = processor_s(command, MICA_STATE=str(turn / "state"))
            remove(turn)
            return seconds

        def pair(kind: str) -> Pair:
            stock = ("--chunk-sizes", "4096,8192,16384")
            return Pair(lambda: spent_s(kind), lambda: spent_s(kind, *stock), repeats=3)

        yield {"ingest.weights_cpu": pair("weights"), "ingest.programs_cpu": pair("programs")}


@rows(("ingest.cut_weights", "ingest.cut_zeros"), "MB/s")
@contextlib.contextmanager
def cutting() -> Iterator[Mapping[str, Pair]]:
    """Finding the places where a large file is cut, of one processor's time; the SHA-1 of the same bytes."""
    with workspace() as work:
        make_weights(work / "weights", _CUT_BYTES)
        numbers, zeros = (work / "weights").read_bytes(), bytes(_CUT_BYTES)

        def speed(call: Callable[[], object]) -> float:
            start = time.process_time()
            call()
            return _CUT_BYTES / (time.process_time() - start) / 1e6

        def pair(data: bytes) -> Pair:
            return Pair(
                lambda: speed(lambda: sum(map(len, read_pieces(io.BytesIO(data), FINE_RULE, len(data))))),
                lambda: speed(lambda: hashlib.sha1(data)),
            )

        yield {"ingest.cut_weights": pair(numbers), "ingest.cut_zeros": pair(zeros)}


@row("ingest.rss_mb", "MB")
@contextlib.contextmanager
def memory() -> Iterator[Pair]:
    """Peak memory of publishing an archive of 1 GB: large files and 50,000 small ones."""
    with workspace() as work:
        make_tree(work / "tree" / "small", 50_000, 4_000)
        block = (work / "tree" / "small" / "d00000" / "f0000000").read_bytes()
        for number in range(4):
            with (work / "tree" / f"large-{number}").open("wb") as file:
                for part in range(50_000):
                    file.write(b"%d" % (part * 7919) + block)
        subprocess.run(["tar", "-cf", work / "tree.tar", "-C", work / "tree", "."], check=True)
        remove(work / "tree")
        turns = itertools.count()

        def ours() -> float:
            turn = work / f"turn-{next(turns)}"
            mica(turn / "state", "repo", "create", FQRN, "--storage", turn / "storage")
            command = [sys.executable, "-m", "mica", "repo", "ingest", FQRN, work / "tree.tar", "/data", "--catalog"]
            peak = peak_rss_mb(command, MICA_STATE=str(turn / "state"))
            remove(turn)
            return peak

        yield Pair(ours, repeats=2)
