"""What workloads share: commands with their peak memory, repositories and mounts of their own, trees of files."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FQRN = "bench.example.org"


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


def mica(state: Path, *arguments: str | Path) -> float:
    """Seconds of one of our commands."""
    return timed([sys.executable, "-m", "mica", *arguments], MICA_STATE=str(state))


def peak_rss_mb(command: list[str | Path], **environment: str) -> float:
    """Peak resident memory of a command, in MB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, [str(part) for part in command])
    return _mb(usage)


def _mb(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss * 1024 / 1e6


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


@contextlib.contextmanager
def mounted(work: Path, url: str, *options: str, cache: str) -> Iterator[tuple[Path, int]]:
    """The repository mounted from a URL; mount point and process id of its server."""
    target = work / "mnt"
    target.mkdir(exist_ok=True)
    key = work / "state" / "repositories" / FQRN / "keys" / f"{FQRN}.pub"
    reader, writer = os.pipe()
    command = [
        sys.executable, "-m", "mica", "mount", FQRN, str(target), "--url", url, "--key", str(key),
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


def make_random_file(path: Path, size_bytes: int) -> None:
    """Content that no compressor and no file system can make smaller."""
    with open(path, "wb") as file:
        file.writelines(os.urandom(1 << 20) for _ in range(size_bytes >> 20))


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
