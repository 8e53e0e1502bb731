"""Commands of mica as processes that start in a moment: forked from one process that has imported everything.

    with Zygote() as zygote:
        worker = zygote.start("worker", "--commit", state=state, output=path)
        worker.kill(); worker.code()

They end with the block, whatever they do. `run_script` runs a program text in the same way and waits for it. Tests that
kill many of them share the fixture `zygote`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

Finished = subprocess.CompletedProcess[str]

_PROGRAM = """
import ctypes, json, os, signal, sys, time
import mica.cli.main, mica.cli.queues, mica.cli.registries, mica.cli.bars, mica.cli.replicate, mica.cli.repomove
import mica.cli.repo, mica.cli.convert, mica.cli.worker, mica.cli.sync
import mica.collect.collection, mica.replicate.replication, mica.publish.ingest, mica.publish.moving
import mica.convert.converter, mica.jobs.committer, mica.jobs.making, mica.jobs.tasks, mica.oci.registry
import psycopg
from mica.signals import exit_program
libc = ctypes.CDLL(None)

def start(arguments, environment, output, script):
    child = os.fork()
    if child:
        return child
    libc.prctl(1, 9)  # PR_SET_PDEATHSIG
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(fd, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(environment)
    sys.argv = ["mica", *arguments]
    if script is None:
        exit_program(mica.cli.main.run_command(arguments))
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
    sys.exit()

def wait(child, seconds):
    deadline = time.monotonic() + seconds
    while (code := look(child)) is None:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return code

def look(child):
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None

print("ready", flush=True)
for line in sys.stdin:
    name, *values = json.loads(line)
    answer = {"start": start, "look": look, "wait": wait}[name](*values)
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Process:
    """A command that runs. Its output is in a file."""

    zygote: "Zygote"
    pid: int
    output: Path
    known: int | None = None

    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.known is None:
            self.known = self.zygote.ask("look", self.pid)
        return self.known

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.code() is None:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float = 60) -> int:
        deadline_s = time.monotonic() + timeout_s
        while (code := self.code()) is None:
            assert time.monotonic() < deadline_s, self.output.read_text()
            time.sleep(0.02)
        return code


class Zygote:
    """One process and its children. `prefix` is a command that starts it elsewhere."""

    def __init__(self, *prefix: str) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, *arguments: str | Path, output: Path, **environment: str | Path) -> Process:
        output.touch()  # it may be killed before it does so
        values = {name: str(value) for name, value in environment.items()}
        return Process(self, self.ask("start", [*map(str, arguments)], values, str(output), None), output)

    def run_script(
        self, script: str, *arguments: str | Path, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Its output and its errors are one text. Killed after `timeout_s`; nothing else can be asked meanwhile."""
        with tempfile.NamedTemporaryFile(prefix="mica-test-") as output:
            pid = self.ask("start", [*map(str, arguments)], {}, output.name, script)
            code = self.ask("wait", pid, timeout_s)
            text = output.read().decode("utf-8", "replace")
        return subprocess.CompletedProcess([*map(str, arguments)], code, text, text)

    def ask(self, *values: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made
