"""What the node itself costs: first opens, mounts, memory."""

import contextlib
import itertools
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import urllib3
from demo import trees
from demo.image import CONFIG
from demo.ocilayout import Layer, write_image, write_layer

from benchmarks.harness import Pair, row, rows
from benchmarks.nodes import descriptor_of, running_node, union
from benchmarks.support import FQRN, make_tree, mica, remove, served, workspace
from mica.daemon.client import open_node
from mica.dataplane.nodedirectory import NodeDirectory

_LAYERS = 10
_ENTRIES = 100_000
_OPENS = 200
_OPEN_FILES = 1_000


@contextlib.contextmanager
def _published(layers: int, files: int, size: int) -> Iterator[tuple[Path, str]]:
    """An image of equal layers, published and served; the workspace and the URL."""
    with workspace() as work:
        written: list[Layer] = []
        for number in range(layers):
            make_tree(work / "tree" / f"layer{number}", files // layers, size)
            entries = trees.layer_of(trees.scan(work / "tree", latest_ns=0))
            written.append(write_layer(work / "image", entries, created_by="bench"))
            remove(work / "tree")
        write_image(work / "image", written, tag="bench", created="2025-01-01T00:00:00Z", config=CONFIG)
        mica(work / "state", "repo", "create", FQRN, "--storage", work / "storage")
        source = f"oci:{work}/image:bench"
        mica(work / "state", "convert", source, FQRN, "--tag", "bench/image:1", "--output", f"oci:{work}/thin:bench")
        with served(work) as url:
            yield work, url


@row("node.first_open_ms", "ms")
@contextlib.contextmanager
def first_open() -> Iterator[Pair]:
    """Median of opening and reading a file of 5 KB that is not in the cache; beside the download alone of such an
    object over a kept connection, one after each open. Take the difference, not the ratio."""
    with _published(1, 4 * _OPENS, 5_000) as (work, url):
        objects = [path for path in (work / "storage" / "data").glob("*/*") if re.fullmatch(r"[0-9a-f]{38}", path.name)]
        urls = [f"{url}/data/{path.parent.name}/{path.name}" for path in objects[:_OPENS]]
        turns = itertools.count()
        downloads: list[float] = []

        def ours() -> float:
            descriptor = descriptor_of(work / "thin", "bench")
            turn = next(turns)
            opens: list[float] = []
            downloads.clear()
            with (
                running_node(work, url, cache=f"cache-{turn}") as node,
                open_node(node.service) as client,
                union(client, descriptor, work / f"union-{turn}") as merged,
                urllib3.PoolManager() as pool,
            ):
                files = sorted(path for path in merged.rglob("f*") if path.is_file())
                for file, one in zip(files[:: len(files) // _OPENS], urls, strict=False):
                    opens.append(_ms(file.read_bytes))
                    downloads.append(_ms(lambda one=one: pool.request("GET", one).data))  # type: ignore[misc]
            return statistics.median(opens)

        yield Pair(ours, lambda: statistics.median(downloads))


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


@rows(["node.mount_cached_ms", "node.mount_uncached_ms"], "ms")
@contextlib.contextmanager
def mounting() -> Iterator[Mapping[str, Pair]]:
    """Asking a running node for an image of 10 layers and 100,000 entries, and mounting it writable; with its metadata
    images in the cache, and with an empty cache."""
    with _published(_LAYERS, _ENTRIES, 200) as (work, url):
        descriptor = descriptor_of(work / "thin", "bench")
        turns = itertools.count()

        def mount_once(node: NodeDirectory) -> float:
            place = work / f"union-{next(turns)}"
            start = time.perf_counter()
            with open_node(node.service) as client, union(client, descriptor, place):
                return (time.perf_counter() - start) * 1000

        def uncached() -> float:
            with running_node(work, url, cache=f"cache-{next(turns)}") as node:
                return mount_once(node)

        with running_node(work, url) as node:
            mount_once(node)
            yield {
                "node.mount_cached_ms": Pair(lambda: mount_once(node)),
                "node.mount_uncached_ms": Pair(uncached),
            }


@row("node.rss_mb", "MB")
@contextlib.contextmanager
def memory() -> Iterator[Pair]:
    """All processes of a node, holder included, when 100,000 objects are known and fetched ones are held open by 1,000
    descriptors: the sum of what each has of its own and its share of common pages (PSS)."""
    with _published(_LAYERS, _ENTRIES, 600) as (work, url):
        descriptor = descriptor_of(work / "thin", "bench")

        def ours() -> float:
            with (
                running_node(work, url) as node,
                open_node(node.service) as client,
                union(client, descriptor, work / "union") as merged,
                contextlib.ExitStack() as stack,
            ):
                for path in itertools.islice(merged.rglob("f*"), _OPEN_FILES):
                    stack.enter_context(path.open("rb")).read()
                return _pss_mb(node)

        yield Pair(ours, repeats=1)


def _pss_mb(node: NodeDirectory) -> float:
    """Of every process that has the node's directory in its command line, the holder's socket being one."""
    total_kb = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            command = (entry / "cmdline").read_bytes()
            is_ours = os.fsencode(node.path) in command and b"\0node\0" in command
            if is_ours or (b"holder.py" in command and _holds(entry, node)):
                text = (entry / "smaps_rollup").read_text()
                total_kb += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    return total_kb * 1024 / 1e6


def _holds(process: Path, node: NodeDirectory) -> bool:
    inode = node.holder.stat().st_ino
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    sockets = {line.split()[6] for line in lines if line.endswith(os.fspath(node.holder.name)) and inode}
    links = [os.readlink(link) for link in (process / "fd").iterdir()]
    return any(link == f"socket:[{number}]" for link in links for number in sockets)
