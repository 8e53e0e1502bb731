"""A Docker Engine on the graph driver beside the same engine on overlay2, on the same disk.

Engines are those of the tests (`tests/support/dockers.py`): one place knows how to start them.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from demo.image import build
from tests.support.dockers import (
    Docker,
    Host,
    add_member,
    base_layers,
    driven_engine,
    image_archive,
    running_docker,
    running_host,
    short_directory,
    thin_archive,
)
from tests.support.nodes import Publication
from tests.support.tars import by_tarfile

from benchmarks.coldstart import R, published
from benchmarks.harness import Pair, row, rows
from benchmarks.link import LAN, Link, running, served_over, wait_for
from benchmarks.support import FQRN, nginx_command, timed

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


# The first start of R on a machine that has nothing of it, over 100 Mbit/s: pull, then run. Ours pulls the thin image.

_WEB_PORT, _REGISTRY_PORT = 8080, 5000
_HOST = f"{Link.server_address}:{_REGISTRY_PORT}"
_COLD_THIN, _COLD_ORDINARY = f"{_HOST}/demo/thin:1", f"{_HOST}/demo/r:1"


class _Far(NamedTuple):
    """The repository with the demo image, as a node at the near end reaches it."""

    publication: Publication
    url: str


class _Start(NamedTuple):
    """Seconds to the program's first line, and bytes received until its end."""

    seconds: float
    received_bytes: float


class _ColdStarts:
    """An engine of each kind and everything it needs is made again for every turn; only pull and run are timed."""

    def __init__(self, link: Link, far: _Far) -> None:
        self._link = link
        self._far = far
        self._near = link.at("client")

    def thin(self) -> _Start:
        with short_directory() as work, driven_engine(work, self._far, *_INSECURE, before=self._near) as (_, docker):
            return self._start(docker, _COLD_THIN)

    def ordinary(self) -> _Start:
        with short_directory() as work, running_docker(work, "overlay2", *_INSECURE, before=self._near) as docker:
            return self._start(docker, _COLD_ORDINARY)

    def _start(self, docker: Docker, image: str) -> _Start:
        before, started = self._link.received_bytes(), time.monotonic()
        docker("pull", "--quiet", image)
        came, line = docker.first_line("run", "--rm", "--network", "none", image, *R.command)
        if re.fullmatch(R.expected, line) is None:
            raise RuntimeError(f"{image} printed {line!r}")
        return _Start(came - started, self._link.received_bytes() - before)


_INSECURE = ("--insecure-registry", _HOST)


@contextmanager
def _cold_starts() -> Iterator[tuple[_ColdStarts, int]]:
    """And the compressed size of the ordinary image in bytes."""
    with (
        published() as (work, compressed),
        served_over(LAN, nginx_command(work, _WEB_PORT), _WEB_PORT) as (link, url),
        running(link.at("server", "docker-registry", "serve", _registry_config(work))),
    ):
        wait_for(link, _REGISTRY_PORT)
        for source, target in ((build().source, _COLD_ORDINARY), (f"oci:{work}/thin:r", _COLD_THIN)):
            timed(link.at("server", "skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", source,
                          f"docker://{target}"))  # fmt: skip
        publication = Publication(work / "state", work / "storage", f"oci:{work}/thin:r", {}, FQRN)
        yield _ColdStarts(link, _Far(publication, f"{url}/cvmfs/{FQRN}")), compressed


def _registry_config(work: Path) -> Path:
    path = work / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(work / "registry")}}
    document = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": storage,
        "http": {"addr": _HOST},
    }
    path.write_text(json.dumps(document))  # JSON is YAML.
    return path


@row("docker.cold_first_output", "s")
@contextmanager
def _cold_first_output() -> Iterator[Pair]:
    with _cold_starts() as (starts, _):
        yield Pair(lambda: starts.thin().seconds, lambda: starts.ordinary().seconds, repeats=3)


@row("docker.bytes_share", "of compressed")
@contextmanager
def _bytes_share() -> Iterator[Pair]:
    with _cold_starts() as (starts, compressed):
        yield Pair(
            lambda: starts.thin().received_bytes / compressed,
            lambda: starts.ordinary().received_bytes / compressed,
            repeats=3,
        )
