"""The first start of a program from an image that this node has never seen, over a network with a known rate.

Everything through the command `mica run`, a new process with an empty cache each time, whatever the data plane under
it: figures are comparable between versions. What the node's own programs are made of is in the kernel's caches.
"""

import contextlib
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from demo.image import build

from benchmarks.harness import Pair, row
from benchmarks.link import FAR, FAST_LAN, LAN, Link, Shape, served_over
from benchmarks.support import FQRN, mica, nginx_command, public_key, remove, served, workspace

_PORT = 8080


class Program(NamedTuple):
    """What is started, and the first line it has to print."""

    command: tuple[str, ...]
    expected: str


R = Program(("Rscript", "-e", 'cat(sum(1:10),"\\n")'), r"55 ?")
NUMPY = Program(("python3", "-c", "import numpy; print(numpy.__version__)"), r"\d+\.\d+\.\d+")


class Start(NamedTuple):
    """Seconds to the first line; bytes received until the end, headers of all layers included."""

    seconds: float
    received_bytes: int


@contextlib.contextmanager
def published(chunk_sizes: str | None = None, *, traced: bool = True) -> Iterator[tuple[Path, int]]:
    """A workspace with the demo image in its repository, with traces of both programs; and the image's compressed size
    in bytes."""
    image = build()
    with workspace() as work:
        rule = ("--chunk-sizes", chunk_sizes) if chunk_sizes else ()
        mica(work / "state", "repo", "create", FQRN, "--storage", work / "storage", *rule)
        convert = ("convert", image.source, FQRN, "--tag", "demo/r:1", "--output", f"oci:{work}/thin:r")
        mica(work / "state", *convert)
        if traced:
            mica(work / "state", *convert, *_recorded(work))
        yield work, image.compressed_bytes


def _recorded(work: Path) -> list[str | Path]:
    """Options that publish what each program asked for in a run of its own."""
    options: list[str | Path] = []
    with served(work) as url:
        for number, program in enumerate((R, NUMPY)):
            trace, cache = work / f"{number}.trace", work / f"recording-{number}"
            place = ("--url", url, "--key", public_key(work), "--cache", cache)
            mica(work / "state", "run", *place, "--trace", trace, f"oci:{work}/thin:r", *program.command)
            options += ["--trace", trace]
            remove(cache)
    return options


@contextlib.contextmanager
def starting(work: Path, shape: Shape) -> Iterator[Callable[[Program], Start]]:
    """A function that starts a program from the published image, with an empty cache, at the near end of a link."""
    turns = itertools.count()
    with served_over(shape, nginx_command(work, _PORT), _PORT) as (link, url):

        def start(program: Program) -> Start:
            cache = work / f"cache-{next(turns)}"
            try:
                return _start(link, f"{url}/cvmfs/{FQRN}", work, cache, program)
            finally:
                remove(cache)

        yield start


def _start(link: Link, url: str, work: Path, cache: Path, program: Program) -> Start:
    options: list[str | Path] = ["--url", url, "--key", public_key(work), "--cache", cache]
    command = [sys.executable, "-m", "mica", "run", *options, f"oci:{work}/thin:r", *program.command]
    environment = {**os.environ, "MICA_STATE": str(work / "state")}
    before = link.received_bytes()
    started = time.perf_counter()
    with subprocess.Popen(
        link.at("client", *command), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        seconds = time.perf_counter() - started
        process.stdout.read()
    if process.returncode or re.fullmatch(program.expected, first.rstrip("\n")) is None:
        raise RuntimeError(f"{program.command} ended with {process.returncode} and printed {first!r}")
    return Start(seconds, link.received_bytes() - before)


def _seconds_row(name: str, program: Program, shape: Shape, *, traced: bool = True) -> None:
    @row(name, "s")
    @contextlib.contextmanager
    def seconds() -> Iterator[Pair]:
        with published(traced=traced) as (work, _), starting(work, shape) as start:
            yield Pair(lambda: start(program).seconds)


def _share_row(name: str, program: Program, *, traced: bool = True) -> None:
    @row(name, "of compressed")
    @contextlib.contextmanager
    def share() -> Iterator[Pair]:
        with published(traced=traced) as (work, compressed), starting(work, LAN) as start:
            yield Pair(lambda: start(program).received_bytes / compressed)


_PROGRAMS = (("r", R), ("numpy", NUMPY))
for _name, _program in _PROGRAMS:
    _share_row(f"cold_start.{_name}_bytes_share", _program)
    _share_row(f"cold_start.{_name}_untraced_bytes_share", _program, traced=False)
    for _link, _shape in (("100mbit", LAN), ("1gbit", FAST_LAN), ("far", FAR)):
        _seconds_row(f"cold_start.{_name}_{_link}_s", _program, _shape)
        _seconds_row(f"cold_start.{_name}_untraced_{_link}_s", _program, _shape, traced=False)
