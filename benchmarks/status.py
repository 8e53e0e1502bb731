"""`mica status` beside the least that any command does."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.harness import Pair, rows
from benchmarks.mount import published_text
from benchmarks.support import mounted, processor_s, read_all


@rows(("status.cpu_ms", "status.local_cpu_ms"), "ms")
@contextlib.contextmanager
def status() -> Iterator[Mapping[str, Pair]]:
    """Processor time of `mica status`, and of counting what is local, where a repository of 10,000 files is mounted
    that are all local; `mica --help`."""
    with published_text() as (work, url), mounted(work, url, cache="cache") as (target, _):
        read_all(target / "data")

        def spent_ms(*arguments: str) -> float:
            command: list[str | Path] = [sys.executable, "-m", "mica", *arguments]
            return processor_s(command, MICA_STATE=str(work / "state")) * 1000

        yield {
            "status.cpu_ms": Pair(lambda: spent_ms("status"), lambda: spent_ms("--help"), warm_ups=1),
            "status.local_cpu_ms": Pair(lambda: spent_ms("status", "--local"), lambda: spent_ms("--help"), warm_ups=1),
        }
