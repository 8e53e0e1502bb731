"""A server in a child: what it tells, and that it always ends. Each case in a process without threads of its own."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

HEAD = """
import json, os, signal, sys, time
from mica.errors import *
from mica.serverprocess import *

def outcome(call):
    try:
        return call()
    except MicaError as error:
        return f"{type(error).__name__}: {error} {error.hint}"

def serve_until_end(parent):
    parent.ready()
    while parent.wait():
        pass
    return {"seen": "the end"}
"""


def run(code: str, *, timeout_s: float = 60, options: Sequence[str] = ()) -> tuple[str, str]:
    """What it prints, and says on standard error."""
    done = subprocess.run(
        [sys.executable, *options, "-c", HEAD + code], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def test_a_result() -> None:
    code = """
with open_server_process(serve_until_end, "server of tests") as server:
    print(server.result, server.exit_code)
print(server.result, server.exit_code)
"""
    assert run(code) == ("None None\n{'seen': 'the end'} 0", "")


def test_a_failure_before_it_is_ready_has_its_class() -> None:
    code = """
def serve(parent):
    raise NotFoundError("There is no x.", hint="Make it.")

def start():
    with open_server_process(serve):
        print("never")
print(outcome(start))
"""
    assert run(code) == ("NotFoundError: There is no x. Make it.", "")


def test_a_death_before_it_is_ready_is_told() -> None:
    code = """
def start(how):
    with open_server_process(how, "server of tests"):
        print("never")
print(outcome(lambda: start(lambda parent: os._exit(3))))
print(outcome(lambda: start(lambda parent: os.kill(os.getpid(), signal.SIGKILL))))
"""
    assert (
        run(code)[0]
        == (
            "UserError: The server of tests died (exit code 3). \nUserError: The server of tests died (signal 9). "
        ).strip()
    )


def test_a_death_while_it_serves_is_told_at_the_end() -> None:
    code = """
with open_server_process(serve_until_end, "server of tests") as server:
    os.kill(server.pid, signal.SIGKILL)
print(server.result, server.exit_code)
"""
    assert run(code) == ("None -9", "the server of tests died (signal 9)")


def test_a_bug_shows_its_traceback() -> None:
    out, err = run("""
def serve(parent):
    raise KeyError("bug")
print(outcome(lambda: run_in_child(lambda: serve(None))))
""")
    assert out == "UserError: The server process died (exit code 1)."
    assert "KeyError: 'bug'" in err


def test_a_call_in_a_child() -> None:
    code = """
print(run_in_child(lambda: {"parent": 1, "long": "x" * 300_000})["long"].count("x"))

def fail():
    raise IntegrityError("Other bytes.")
print(outcome(lambda: run_in_child(fail)))
"""
    assert run(code) == ("300000\nIntegrityError: Other bytes.", "")


def test_no_signal_ends_it_but_its_parent_does() -> None:
    code = """
with open_server_process(serve_until_end) as server:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(server.pid, number)
    time.sleep(0.1)
    print(server.has_ended())
print(server.result)
"""
    assert run(code) == ("False\n{'seen': 'the end'}", "")


def test_it_can_be_stopped_at_any_moment_of_its_start() -> None:
    code = """
def serve(parent):
    import email.mime.text, http.server, sqlite3, tarfile
    with open_server_process(serve_until_end, wait=False):
        return serve_until_end(parent)

for turn in range(60):
    server = start_server_process(serve)
    time.sleep(turn / 1000)
    server.stop()
    assert server.exit_code == 0, server.exit_code
for turn in range(60):
    server = start_server_process(serve)
    time.sleep(turn / 1000)
    server.kill()
    assert server.exit_code == -9, server.exit_code
print("done")
"""
    assert run(code) == ("done", "")


def test_the_signals_of_its_parent_are_not_its_own() -> None:
    """A handler that the parent has must not run in the child, whenever the signal comes."""
    code = """
class Oops(BaseException):
    pass

def oops(number, frame):
    raise Oops

signal.signal(signal.SIGTERM, oops)
for turn in range(100):
    server = start_server_process(serve_until_end)
    os.kill(server.pid, signal.SIGTERM)
    server.stop()
    assert server.exit_code == 0 and server.result, server.exit_code
print("done")
"""
    assert run(code) == ("done", "")


def test_one_that_does_not_end_is_killed() -> None:
    code = """
def serve(parent):
    parent.ready()
    while True:
        time.sleep(1)
server = start_server_process(serve, "server of tests")
server.wait_until_ready()
server.stop(within_s=0.2)
print(server.exit_code)
"""
    assert run(code) == ("-9", "the server of tests does not end and is killed")


def test_who_hangs_below_a_dead_server_holds_nobody_up() -> None:
    """A grandchild has no end of the connection: its parent's death is seen at once."""
    code = """
def serve(parent):
    inner = start_server_process(lambda parent: (parent.ready(), time.sleep(600)))
    inner.wait_until_ready()
    parent.tell({"result": inner.pid})
    os.kill(os.getpid(), signal.SIGKILL)

server = start_server_process(serve, "server of tests")
try:
    server.join()
except UserError as error:
    print(error)
for _ in range(1000):
    try:
        os.kill(server.result, 0)
    except ProcessLookupError:
        print("gone")
        break
    time.sleep(0.01)
"""
    assert run(code) == ("The server of tests died (signal 9).\ngone", "")


def test_children_end_with_a_killed_parent() -> None:
    code = """
reader, writer = os.pipe()
middle = os.fork()
if not middle:
    with open_server_process(serve_until_end) as one, open_server_process(serve_until_end) as two:
        os.write(writer, f"{one.pid} {two.pid}".encode())
        time.sleep(600)
pids = os.read(reader, 100).split()
os.kill(middle, signal.SIGKILL)
os.waitpid(middle, 0)
for pid in map(int, pids):
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            print("gone")
            break
        time.sleep(0.01)
"""
    assert run(code) == ("gone\ngone", "")


def test_what_is_sent_is_received_once_or_not_at_all() -> None:
    code = """
def serve(parent):
    got = parent.receive()
    parent.ready()
    while got is not None and parent.wait():
        pass
    return got and [len(got["text"]), parent.receive() is None]

server = start_server_process(serve)
server.send({"text": "x" * 1_000_000})
server.wait_until_ready()
server.stop()
print(server.result)
server = start_server_process(serve)
server.stop()
print(server.result, server.exit_code)
"""
    assert run(code) == ("[1000000, True]\nNone 0", "")


def test_waiting_for_readiness_can_be_broken_off() -> None:
    code = """
reader, writer = os.pipe()
os.write(writer, b"x")
server = start_server_process(lambda parent: parent.wait(timeout_s=600))
print(server.wait_until_ready(open(reader)))
server.stop()
print(server.exit_code)
"""
    assert run(code) == ("False\n0", "")


def test_a_process_with_threads_is_not_forked() -> None:
    """Also with -O, which removes assertions: the child would wait for ever for a lock that a thread held."""
    code = """
import threading
go = threading.Event()
thread = threading.Thread(target=go.wait)
thread.start()
try:
    start_server_process(serve_until_end, "server of tests")
except RuntimeError as error:
    print(error)
go.set()
thread.join()
"""
    told = "The server of tests cannot be forked from a process with 2 threads."
    assert run(code) == (told, "")
    assert run(code, options=["-O"]) == (told, "")


@pytest.mark.parametrize("begin", ["run_in_child(work)", "start_server_process(lambda _: work())"])
def test_a_signal_during_the_start_ends_the_child(begin: str) -> None:
    """It is there before the caller has anything that it could end."""
    code = f"""
fork, children = os.fork, []
def late_fork():
    pid = fork()
    if pid:
        children.append(pid)
        while not signal.sigpending():
            time.sleep(0.01)
    return pid
os.fork = late_fork

def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGUSR1, interrupt)

def work():
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(600)
try:
    {begin}
except KeyboardInterrupt:
    print("interrupted", os.path.exists(f"/proc/{{children[0]}}"))
"""
    assert run(code) == ("interrupted False", "")
