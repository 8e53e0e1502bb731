"""A Docker Engine on the graph driver beside the same engine on overlay2, on the same disk.

Engines are those of the tests (`tests/support/dockers.py`): one place knows how to start them.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.dockers import (
    Docker,
    Host,
    add_member,
    base_layers,
    image_archive,
    running_docker,
    running_host,
    short_directory,
    thin_archive,
)
from tests.support.tars import by_tarfile

from benchmarks.harness import Pair, row, rows

ORDINARY, THIN, LARGE = "base/ordinary:1", "base/thin:1", "large:1"
_FILES, _FILE_BYTES = 16, 64 << 20
_CONTAINERS = 50


@contextmanager
def _engines() -> Iterator[tuple[Host, Docker]]:
    with ExitStack() as stack:
        work = stack.enter_context(short_directory())
        host = stack.enter_context(running_host(work))
        stock = stack.enter_context(running_docker(work / "stock", "overlay2"))
        host.docker("load", stdin=thin_archive(host.image.publication.descriptor, tag=THIN))
        for engine in (host.docker, stock):
            engine("load", stdin=image_archive(base_layers(), ORDINARY))
        yield host, stock


def _start_s(docker: Docker, image: str) -> float:
    started = time.monotonic()
    docker.run(image, "cat", "/data/1")
    return time.monotonic() - started


@rows(["docker.warm_start", "docker.warm_start_ordinary"], "s")
@contextmanager
def _warm_start() -> Iterator[Mapping[str, Pair]]:
    with _engines() as (host, stock):

        def pair(image: str) -> Pair:
            return Pair(lambda: _start_s(host.docker, image), lambda: _start_s(stock, ORDINARY), repeats=9, warm_ups=2)

        yield {"docker.warm_start": pair(THIN), "docker.warm_start_ordinary": pair(ORDINARY)}


def _large_archive(path: Path) -> Path:
    """An image of one layer of a gigabyte."""
    content = os.urandom(_FILE_BYTES)

    def fill(tar: object) -> None:
        for number in range(_FILES):
            add_member(tar, f"file{number}", data=content)  # type: ignore[arg-type]

    path.write_bytes(image_archive([by_tarfile(fill)], LARGE))
    return path


def _load_rate(docker: Docker, archive: Path) -> float:
    os.sync()
    started = time.monotonic()
    docker("load", "--input", archive)
    elapsed_s = time.monotonic() - started
    docker("rmi", LARGE)
    return _FILES * _FILE_BYTES / 1e6 / elapsed_s


@row("docker.applydiff_1g", "MB/s")
@contextmanager
def _applydiff() -> Iterator[Pair]:
    with short_directory() as place, _engines() as (host, stock):
        archive = _large_archive(place / "large.tar")
        yield Pair(lambda: _load_rate(host.docker, archive), lambda: _load_rate(stock, archive), repeats=3, warm_ups=1)


def _peak_mb(pid: int) -> float:
    """Peak memory, what it shares with its parent included (proc_pid_status(5))."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1000


@rows(["docker.rss_mb", "docker.rss_applydiff_mb"], "MB")
@contextmanager
def _memory() -> Iterator[Mapping[str, Pair]]:
    with short_directory() as place, _engines() as (host, _):
        archive = _large_archive(place / "large.tar")
        running = 0

        def with_containers() -> float:
            nonlocal running
            while running < _CONTAINERS:
                host.docker("run", "-d", "--network", "none", THIN if running % 2 else ORDINARY, "sleep", "3600")
                running += 1
            return _peak_mb(host.node.servers()["driver"])

        def with_a_large_layer() -> float:
            _load_rate(host.docker, archive)
            return _peak_mb(host.node.servers()["driver"])

        yield {
            "docker.rss_mb": Pair(with_containers, repeats=1),
            "docker.rss_applydiff_mb": Pair(with_a_large_layer, repeats=1),
        }
