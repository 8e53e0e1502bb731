"""Converting the R image from a registry on loopback, beside copying and unpacking it with skopeo and umoci."""

import contextlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from demo.image import build
from tests.support.registry import real_registry

from benchmarks.harness import Pair, row
from benchmarks.support import FQRN, mica, peak_rss_mb, remove, timed, workspace

_NAME = "bench/r:1"


@contextlib.contextmanager
def _published() -> Iterator[tuple[Path, str]]:
    """A workspace, and HOST:PORT of a registry that has the image."""
    image = build()
    with workspace() as work, tempfile.TemporaryDirectory() as place, real_registry(Path(place)) as host:
        source, target = f"oci:{image.layout}:{image.tag}", f"docker://{host}/{_NAME}"
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", source, target]
        subprocess.run(command, check=True)
        yield work, host


def _create(turn: Path) -> None:
    mica(turn / "state", "repo", "create", FQRN, "--storage", turn / "storage")


@row("convert.r_image", "s")
@contextlib.contextmanager
def r_image() -> Iterator[Pair]:
    """Into a fresh repository; `skopeo copy docker://… oci:…` and `umoci unpack` of it."""
    with _published() as (work, host):
        turns = itertools.count()

        def ours() -> float:
            turn = work / f"turn-{next(turns)}"
            _create(turn)
            seconds = mica(turn / "state", "convert", f"docker://{host}/{_NAME}", FQRN)
            remove(turn)
            return seconds

        def baseline() -> float:
            turn = work / f"turn-{next(turns)}"
            turn.mkdir()
            copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
            seconds = timed([*copy, f"docker://{host}/{_NAME}", f"oci:{turn / 'image'}:r"])
            seconds += timed(["umoci", "unpack", "--image", f"{turn / 'image'}:r", turn / "bundle"])
            remove(turn)
            return seconds

        yield Pair(ours, baseline, repeats=3)


@row("convert.again_s", "s")
@contextlib.contextmanager
def again() -> Iterator[Pair]:
    """Once more into the same repository."""
    with _published() as (work, host):
        _create(work)
        mica(work / "state", "convert", f"docker://{host}/{_NAME}", FQRN)
        yield Pair(lambda: mica(work / "state", "convert", f"docker://{host}/{_NAME}", FQRN))


@row("convert.rss_mb", "MB")
@contextlib.contextmanager
def memory() -> Iterator[Pair]:
    """Peak memory of the first conversion."""
    with _published() as (work, host):
        turns = itertools.count()

        def ours() -> float:
            turn = work / f"turn-{next(turns)}"
            _create(turn)
            command = [sys.executable, "-m", "mica", "convert", f"docker://{host}/{_NAME}", FQRN]
            peak = peak_rss_mb(command, MICA_STATE=str(turn / "state"))
            remove(turn)
            return peak

        yield Pair(ours, repeats=2)
