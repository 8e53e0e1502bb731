"""A mounted image that is fully in the cache, beside plain overlayfs on the local disk with the same content unpacked.

Both turn by turn, mounted for each as for a container that starts. `warm`: the second time in one mount; `cold`: the
first time, the kernel's caches were dropped before mounting, ours is full.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from demo import trees
from demo.image import CONFIG, build
from demo.ocilayout import write_image, write_layer

from benchmarks import loops
from benchmarks.harness import Pair, rows
from benchmarks.nodes import cached
from benchmarks.support import (
    FQRN,
    Mounting,
    drop_caches,
    make_large_file,
    make_tree,
    mica,
    overlaid,
    printed_seconds,
    served,
    workspace,
)

_NAMES = 50_000
_SMALL_FILES = 20_000
_LARGE_BYTES = 1 << 30


@contextlib.contextmanager
def _both(work: Path, source: str, unpacked: Path) -> Iterator[tuple[Mounting, Mounting]]:
    """The image from the repository, everything of it in the cache, and what unpacking it gave."""
    mica(work / "state", "repo", "create", FQRN, "--storage", work / "storage")
    mica(work / "state", "convert", source, FQRN, "--tag", "bench/image:1", "--output", f"oci:{work}/thin:bench")
    with served(work) as url, cached(work, url) as ours:
        yield ours, lambda: overlaid([unpacked], work / "theirs")


def _loop(loop: str, ours: Mounting, theirs: Mounting, count: int, *, cold: bool = False) -> Pair:
    """Seconds of one of `loops`."""

    def measure(mounting: Mounting) -> float:
        if cold:
            drop_caches()
        with mounting() as tree:
            command = [sys.executable, loops.__file__, loop, str(tree), str(count)]
            if not cold:
                printed_seconds(command)
            return printed_seconds(command)

    return Pair(lambda: measure(ours), lambda: measure(theirs))


@contextlib.contextmanager
def _image_of(work: Path) -> Iterator[tuple[Mounting, Mounting]]:
    """An image whose one layer is `work/tree`."""
    layer = write_layer(work / "image", trees.layer_of(trees.scan(work / "tree", latest_ns=0)), created_by="bench")
    write_image(work / "image", [layer], tag="bench", created="2025-01-01T00:00:00Z", config=CONFIG)
    with _both(work, f"oci:{work}/image:bench", work / "tree") as both:
        yield both


@rows(["warm.find", "warm.stat", "cold.find", "cold.stat"], "s")
@contextlib.contextmanager
def names() -> Iterator[Mapping[str, Pair]]:
    """50,000 files, a hundred in each directory: listing them with attributes, and stat(2) of every one by name."""
    with workspace() as work:
        make_tree(work / "tree", _NAMES, 100)
        with _image_of(work) as both:
            yield {
                f"{state}.{loop}": _loop(loop, *both, _NAMES, cold=state == "cold")
                for state in ("warm", "cold")
                for loop in ("find", "stat")
            }


@rows(["warm.open_read_20k", "cold.open_read_20k"], "s")
@contextlib.contextmanager
def small_files() -> Iterator[Mapping[str, Pair]]:
    """20,000 files of 5 KB: opening, reading to the end, closing."""
    with workspace() as work:
        make_tree(work / "tree", _SMALL_FILES, 5_000)
        with _image_of(work) as both:
            yield {
                f"{state}.open_read_20k": _loop("open_read", *both, _SMALL_FILES, cold=state == "cold")
                for state in ("warm", "cold")
            }


@rows(["warm.seq_1g", "warm.rand_4k", "warm.mmap_1g"], "s")
@contextlib.contextmanager
def large_file() -> Iterator[Mapping[str, Pair]]:
    """A file of 1 GiB: in order, 20,000 random reads of 4 KiB, one byte of every page through mmap(2)."""
    with workspace() as work:
        (work / "tree").mkdir()
        make_large_file(work / "tree" / "large", _LARGE_BYTES)
        with _image_of(work) as both:
            yield {
                f"warm.{name}": _loop(loop, *both, _SMALL_FILES)
                for name, loop in (("seq_1g", "seq"), ("rand_4k", "rand"), ("mmap_1g", "mmap"))
            }


@rows(["warm.import_numpy"], "s")
@contextlib.contextmanager
def numpy() -> Iterator[Mapping[str, Pair]]:
    """`import numpy` by the demo image's own Python."""
    image = build()
    importing = "import time; start = time.perf_counter(); import numpy; print(time.perf_counter() - start)"
    with workspace() as work:
        bundle = work / "bundle"
        subprocess.run(
            ["umoci", "unpack", "--image", f"{image.layout}:{image.tag}", str(bundle)], check=True, capture_output=True
        )
        with _both(work, image.source, bundle / "rootfs") as (ours, theirs):

            def measure(mounting: Mounting) -> float:
                with mounting() as root:
                    command = ["chroot", str(root), "python3", "-c", importing]
                    printed_seconds(command)
                    return printed_seconds(command)

            yield {"warm.import_numpy": Pair(lambda: measure(ours), lambda: measure(theirs))}
