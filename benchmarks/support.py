"""What workloads share: commands with their peak memory, repositories and mounts of their own, trees of files."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks import loops
from benchmarks.harness import Pair
from mica.union.overlay import open_overlay, plan_overlay

FQRN = "bench.example.org"
Mounting = Callable[[], AbstractContextManager[Path]]
"""Mounts a tree for a block."""


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A directory that goes away."""
    with tempfile.TemporaryDirectory(prefix="mica-bench-") as directory:
        yield Path(directory)


def timed(command: list[str | Path], **environment: str) -> float:
    """Seconds of a command that has to succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    return time.perf_counter() - start


def processor_s(command: list[str | Path], **environment: str) -> float:
    """Seconds of processors' time of a command that has to succeed: on a busy machine they say more."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, [str(part) for part in command])
    return usage.ru_utime + usage.ru_stime


def mica(state: Path, *arguments: str | Path) -> float:
    """Seconds of one of our commands."""
    return timed([sys.executable, "-m", "mica", *arguments], MICA_STATE=str(state))


_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def timed_peak(command: list[str | Path], **environment: str) -> tuple[float, float]:
    """Seconds of a command, and its peak memory as `peak_rss_mb` has it."""
    start = time.perf_counter()
    peak = peak_rss_mb(command, **environment)
    return time.perf_counter() - start, peak


def peak_rss_mb(command: list[str | Path], **environment: str) -> float:
    """Peak resident memory of a command, in MB.

    A program's high-water mark begins with that of whoever started it (setmax_mm_hiwater_rss in exec(2)), who here may
    have held gigabytes. So a small interpreter starts it, and asks.
    """
    asking = [sys.executable, "-I", "-S", "-c", _PEAK, *command]
    done = subprocess.run(asking, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return int(done.stdout) * 1024 / 1e6


@contextlib.contextmanager
def served(work: Path) -> Iterator[str]:
    """URL of the repository in `work/state`."""
    command = [sys.executable, "-m", "mica", "repo", "serve", FQRN, "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "MICA_STATE": str(work / "state")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(signal.SIGTERM)


def public_key(work: Path) -> Path:
    return work / "state" / "repositories" / FQRN / "keys" / f"{FQRN}.pub"


def nginx_command(work: Path, port: int) -> list[str | Path]:
    """Command of nginx in the foreground for `work/storage` as `/cvmfs/<fqrn>/`, one process: it is never the limit."""
    (work / "nginx").mkdir(exist_ok=True)
    temporary = "".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (work / "nginx" / "nginx.conf").write_text(
        f"daemon off; master_process off; pid nginx.pid; error_log stderr;"
        f"events {{ worker_connections 1024; }}"
        f"http {{ access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream; {temporary}"
        f"server {{ listen {port}; location /cvmfs/{FQRN}/ {{ alias {work}/storage/; }} }} }}\n"
    )
    return ["nginx", "-p", work / "nginx", "-e", "stderr", "-c", "nginx.conf"]


@contextlib.contextmanager
def nginx_served(work: Path) -> Iterator[str]:
    """URL of the repository in `work/storage`, served by nginx on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(nginx_command(work, port)) as server:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/cvmfs/{FQRN}"
        finally:
            server.terminate()


@contextlib.contextmanager
def mounted(work: Path, url: str, *options: str, cache: str) -> Iterator[tuple[Path, int]]:
    """The repository mounted from a URL; mount point and process id of its server."""
    target = work / "mnt"
    target.mkdir(exist_ok=True)
    reader, writer = os.pipe()
    command = [
        sys.executable, "-m", "mica", "mount", FQRN, str(target), "--url", url, "--key", str(public_key(work)),
        "--cache", str(work / cache), "--foreground", "--ready-fd", str(writer), *options,
    ]  # fmt: skip
    with subprocess.Popen(command, pass_fds=(writer,), env={**os.environ, "MICA_STATE": str(work / "state")}) as server:
        os.close(writer)
        with open(reader, "rb") as pipe:
            pipe.readline()
        try:
            yield target, server.pid
        finally:
            server.send_signal(signal.SIGTERM)


def make_large_file(path: Path, size_bytes: int) -> None:
    """Content that no compressor makes smaller, the same for the same size."""
    content = random.Random(1)
    with path.open("wb") as file:
        file.writelines(content.randbytes(1 << 20) for _ in range(size_bytes >> 20))


def make_weights(path: Path, size_bytes: int) -> None:
    """Numbers of two bytes as models have them (bfloat16): random mantissas, few exponents; the same for the same
    size."""
    content = random.Random(2)
    exponents = bytes(0x3C - (byte & -byte).bit_length() + (byte & 0x80) for byte in range(256))
    numbers = bytearray(1 << 20)
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            numbers[0::2] = content.randbytes(1 << 19)
            numbers[1::2] = content.randbytes(1 << 19).translate(exponents)
            file.write(numbers)


def printed_seconds(command: list[str | Path]) -> float:
    """What a command says that it took."""
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def loop_pair(loop: str, ours: Path, theirs: Path, count: int, *, cold: bool = False) -> Pair:
    """Seconds of one of `loops` over two trees; with `cold` nothing of them is in memory."""

    def measure(tree: Path) -> float:
        if cold:
            drop_caches()
        return printed_seconds([sys.executable, loops.__file__, loop, tree, str(count)])

    return Pair(lambda: measure(ours), lambda: measure(theirs), warm_ups=0 if cold else 1)


@contextlib.contextmanager
def overlaid(layers: list[Path], place: Path) -> Iterator[Path]:
    """Directories, top first, under a writable layer, as every engine mounts them."""
    for name in ("upper", "work", "merged"):
        (place / name).mkdir(parents=True, exist_ok=True)
    with open_overlay(plan_overlay(layers, place / "upper", place / "work", place / "merged")) as target:
        yield target


def read_all(tree: Path) -> None:
    subprocess.run(["sh", "-c", f"find {tree} -xdev -type f -print0 | xargs -0 cat > /dev/null"], check=True)


def make_tree(root: Path, files: int, size: int) -> None:
    """Files of realistic, compressible text, a hundred in each directory, the same for the same arguments."""
    words = [word.encode() for word in Path(__file__).read_text().split()]
    chooser = random.Random(files)
    text = b" ".join(chooser.choice(words) + b"%d" % chooser.randrange(1000) for _ in range(size // 2))
    for number in range(files):
        directory = root / f"d{number // 100:05d}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        start = chooser.randrange(len(text) - size)
        (directory / f"f{number:07d}").write_bytes(b"%d\n" % number + text[start : start + size])


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
