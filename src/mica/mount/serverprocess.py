"""A file system served by a child process for the length of a block: started by fork, stopped by SIGTERM.

The server has a process of its own because an interpreter that is busy with anything else answers the kernel late. It
is forked and not started anew because that saves a third of a second of imports, a tenth of a cold start; so the caller
must have no other threads yet. The child talks over one pipe: a line when it is ready, a line at its end.

    {"ready": true}                                     the mount is there
    {"error": …, "hint": …, "exit_code": …}             it could not be mounted
    {"result": …}                                       what `serve` returned after the SIGTERM
"""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any, Never

from mica import linux
from mica.errors import IntegrityError, MicaError, TemporaryError, UsageError, UserError

Serve = Callable[[Callable[[], None]], Any]
"""Told how to say that it is ready; serves until SIGTERM raises `Stopped`; returns something for JSON."""


class Stopped(BaseException):
    """Raised in the child's main thread by SIGTERM. Not an Exception, so that no handler takes it for a failure."""


class ServerProcess:
    """A running server; `result` is there after the block."""

    def __init__(self, pid: int, pipe: IO[str]) -> None:
        self.pid = pid
        self.result: Any = None
        self._pipe = pipe
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Raises what the child failed with before it was ready."""
        if self._is_ready:
            return
        _read_message(self._pipe)
        self._is_ready = True

    def join(self) -> Any:
        """The result of one that is never ready but ends by itself. Raises what it failed with."""
        with self._pipe:
            try:
                return _read_message(self._pipe).get("result")
            finally:
                os.waitpid(self.pid, 0)

    def stop(self) -> None:
        """Have it end, wait for that, and take its result."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        with self._pipe:
            self.result = _read_result(self._pipe)
        with contextlib.suppress(ChildProcessError):  # somebody has waited for it already
            os.waitpid(self.pid, 0)


def start_server_process(serve: Serve) -> ServerProcess:
    """Run `serve` in a child; the caller has to `stop` it."""
    assert threading.active_count() == 1, "a process with threads must not be forked"
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        _run_child(serve, writer)
    os.close(writer)
    return ServerProcess(pid, open(reader, encoding="utf-8"))


def run_in_child(call: Callable[[], Any]) -> Any:
    """What `call` returns, as JSON has it, from a child whose namespaces and threads are of no concern here.

    Raises the MicaError that it raised.
    """
    child = start_server_process(lambda _: call())
    return child.join()


@contextlib.contextmanager
def open_server_process(serve: Serve, *, wait: bool = True) -> Iterator[ServerProcess]:
    """Run `serve` in a child until the block ends; with `wait` the block begins when it is ready.

    Raises what the child failed with before that.
    """
    server = start_server_process(serve)
    try:
        if wait:
            server.wait_until_ready()
        yield server
    finally:
        server.stop()


def _read_message(pipe: IO[str]) -> dict[str, Any]:
    line = pipe.readline()
    message: dict[str, Any] = (
        json.loads(line) if line else {"error": "A server process died.", "hint": "", "exit_code": 1}
    )
    if "error" in message:
        raise _error_class(message["exit_code"])(message["error"], hint=message["hint"])
    return message


def _read_result(pipe: IO[str]) -> Any:
    """The last line; a child that nobody waited for has its first one still in the pipe."""
    result = None
    for line in pipe:
        result = json.loads(line).get("result", result)
    return result


def _error_class(exit_code: int) -> type[MicaError]:
    classes = {kind.exit_code: kind for kind in (UserError, UsageError, IntegrityError, TemporaryError)}
    return classes.get(exit_code, UserError)


def _run_child(serve: Serve, writer: int) -> Never:
    code = 1
    try:
        # A session of its own: Ctrl-C is for the container and its runner, and files must open until they have ended.
        os.setsid()
        linux.set_parent_death_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, _stop)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        result = _serve_until_stopped(serve, writer)
        _tell(writer, {"result": result})
        code = 0
    except MicaError as error:
        _tell(writer, {"error": str(error), "hint": error.hint, "exit_code": error.exit_code})
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve_until_stopped(serve: Serve, writer: int) -> Any:
    return serve(lambda: _tell(writer, {"ready": True}))


def _stop(_signal: int, _frame: object) -> Never:
    raise Stopped


def _tell(writer: int, message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(writer, json.dumps(message).encode("utf-8") + b"\n")
