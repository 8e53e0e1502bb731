"""Servers that die are started again, in a process without threads of its own."""

import subprocess
import sys

HEAD = """
import os, signal, sys, time
from mica.errors import *
from mica.serverprocess import *
from mica.daemon.restarts import Servers
from mica.daemon.nodeservers import ServerSpec

def spec(name):
    def make(follows):
        def serve(parent):
            parent.ready()
            while parent.wait():
                pass
            return {"name": name, "follows": follows}
        return serve
    return ServerSpec(name, make)

never, _ = os.pipe()
never = open(never)
"""


def run(code: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def test_each_is_started_again_and_told_that_it_follows() -> None:
    code = """
with Servers() as servers:
    one, two = spec("one"), spec("two")
    servers.start(one)
    servers.start(two)
    assert servers.wait_until_ready(never)
    for turn in range(2):
        victim = servers.sources[0]
        os.kill(victim.pid, signal.SIGKILL)
        assert wait_for(*servers.sources) == {victim.fileno()}
        servers.tend()
        assert servers.wait_until_ready(never)
print(servers.results)
"""
    assert run(code) == (
        "{'two': {'name': 'two', 'follows': False}, 'one': {'name': 'one', 'follows': True}}",
        "the one died (signal 9) and is started again\nthe one died (signal 9) and is started again",
    )


def test_what_one_died_of_is_told() -> None:
    code = """
def make(follows):
    def serve(parent):
        if not follows:
            raise NotFoundError("There is no x.")
        parent.ready()
        parent.wait()
    return serve

with Servers() as servers:
    servers.start(ServerSpec("one", make))
    wait_for(*servers.sources)
    servers.tend()
    assert servers.wait_until_ready(never)
"""
    assert run(code) == ("", "the one died (There is no x) and is started again")


def test_one_that_does_not_start_is_told_at_once() -> None:
    code = """
def make(follows):
    def serve(parent):
        raise NotFoundError("There is no x.")
    return serve

try:
    with Servers() as servers:
        servers.start(spec("good"))
        servers.start(ServerSpec("bad", make))
        servers.wait_until_ready(never)
except NotFoundError as error:
    print(error, servers.results)
"""
    assert run(code) == ("There is no x. {'bad': None, 'good': {'name': 'good', 'follows': False}}", "")
