"""`make demo`: a real image is published, served over HTTP on loopback, and run with an empty cache.

Everything is below build/demo. Prints what was saved, beside unpacking the whole image, and writes the same to
build/demo/result.json.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from demo.image import ROOT, DemoImage, build

WORK = ROOT / "build" / "demo"
FQRN = "demo.example.org"
COMMANDS = (
    (["R", "--version"], "R version"),
    (["Rscript", "-e", "cat(sum(1:10))"], "55"),
    (["python3", "-c", "import numpy; print(numpy.arange(11).sum())"], "55"),
)
TIMED = 1
"""Which command the times are of: the one that the other systems of the field are measured with."""


def mica(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; a failure ends the demo with what it said."""
    command = [sys.executable, "-m", "mica", *arguments]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return done


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The repository's URL while it is served."""
    command = [sys.executable, "-m", "mica", "repo", "serve", FQRN, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(signal.SIGTERM)


def run(url: str, command: list[str], expected: str, *, cache: Path) -> tuple[float, dict[str, int]]:
    """Seconds to the first line with the expected text, and the run's statistics."""
    stats = WORK / "stats.json"
    key = WORK / "state" / "repositories" / FQRN / "keys" / f"{FQRN}.pub"
    options = ["--url", url, "--key", str(key), "--cache", str(cache), "--stats", str(stats)]
    arguments = [sys.executable, "-m", "mica", "run", *options, f"oci:{WORK}/thin:r", *command]
    start = time.perf_counter()
    with subprocess.Popen(arguments, env=_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.stdout.read()
    if process.returncode or expected not in first:
        sys.exit(f"{' '.join(command)} failed with code {process.returncode} and printed {first!r}")
    print(f"  {' '.join(command)}: {first.strip()!r} after {seconds:.2f} s")
    return seconds, json.loads(stats.read_text())


def unpack_fully(image: DemoImage) -> float:
    """Seconds that umoci takes to unpack the same image onto the same disk."""
    bundle = WORK / "unpacked"
    start = time.perf_counter()
    command = ["umoci", "unpack", "--image", f"{image.layout}:{image.tag}", str(bundle)]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(bundle)
    return seconds


def measure(image: DemoImage) -> dict[str, Any]:
    """Publish, serve, run everything; the figures of the timed command."""
    for name in ("state", "storage", "thin", "cache-timed", "cache-all", "unpacked"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    mica("repo", "create", FQRN, "--storage", str(WORK / "storage"))
    start = time.perf_counter()
    mica("convert", image.source, FQRN, "--tag", "demo/r:1", "--output", f"oci:{WORK}/thin:r")
    print(f"Published in {time.perf_counter() - start:.1f} s; running with empty caches:")
    with serving() as url:
        _drop_kernel_caches()
        command, expected = COMMANDS[TIMED]
        cold_s, cold = run(url, command, expected, cache=WORK / "cache-timed")
        warm_s, _ = run(url, command, expected, cache=WORK / "cache-timed")
        for other, text in COMMANDS:
            run(url, other, text, cache=WORK / "cache-all")
    return {
        "image_bytes": image.image_bytes,
        "compressed_bytes": image.compressed_bytes,
        "transferred_bytes": cold["transferred_bytes"],
        "files_opened": cold["files_opened"],
        "requests": cold["requests"],
        "first_output_cold_s": round(cold_s, 3),
        "first_output_warm_s": round(warm_s, 3),
        "unpack_full_s": round(unpack_fully(image), 3),
    }


def show(result: dict[str, Any]) -> None:
    """The table."""
    share = result["transferred_bytes"] / result["compressed_bytes"]
    print("Rscript in a container, nothing downloaded before:")
    table = Table("", "", box=SIMPLE_HEAD, show_header=False)
    for name, value in (
        ("image, unpacked", f"{result['image_bytes'] / 1e6:.1f} MB"),
        ("image, compressed", f"{result['compressed_bytes'] / 1e6:.1f} MB"),
        ("transferred", f"{result['transferred_bytes'] / 1e6:.1f} MB"),
        ("share of the compressed image", f"{share:.1%}"),
        ("files opened", result["files_opened"]),
        ("requests", result["requests"]),
        ("first output, cold", f"{result['first_output_cold_s']:.2f} s"),
        ("first output, warm", f"{result['first_output_warm_s']:.2f} s"),
        ("unpacking the whole image instead", f"{result['unpack_full_s']:.2f} s"),
    ):
        table.add_row(name, str(value))
    Console().print(table)


def _drop_kernel_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _environment() -> dict[str, str]:
    return {**os.environ, "MICA_STATE": str(WORK / "state")}


def main() -> None:
    """Build the image if it is not there yet, then measure and show."""
    if os.geteuid() != 0:
        sys.exit("make demo needs root: it mounts file systems and runs containers.")
    image = build()
    result = measure(image)
    (WORK / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    print(f"Written to {(WORK / 'result.json').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
