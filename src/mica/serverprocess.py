"""A server in a child process for the length of a block. It gets its orders over a socket, so no signal is needed to
end it.

The server has a process of its own because an interpreter that is busy with anything else answers the kernel late. It
is forked and not started as a new program, which saves a third of a second of imports, a tenth of a cold start. So the
caller must have no other threads yet. Parent and child have the two ends of one connection:

    child → parent   one JSON object a line
                     {"ready": true}                      it serves
                     {"error": …, "hint": …, "kind": …}   it could not, or failed (`mica.errors.format_error`)
                     {"result": …}                        what `serve` returned
    parent → child   what `ServerProcess.send` gives; then the end of the stream: the child is to end

A signal's handler runs between any two instructions, in the middle of an import, of a clean-up, of a fork; an exception
that it raises there is lost or ends the wrong thing. So a server learns that it has to end where it waits for work
(`Parent.wait`). It ignores SIGTERM and the terminal's signals: they are for the container and its runner, and files
must open until these have ended. A child whose parent dies is killed by the kernel.
"""

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final, Never, Protocol

from mica import linux
from mica.errors import MicaError, UserError, format_error, parse_error
from mica.logs import logger

_log = logger(__name__)
_END_S: Final = 15.0
"""How long a server may take to end in good order."""
_DEATH_S: Final = 5.0
_IGNORED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_SIZE: Final = struct.Struct("<Q")
_ours: Final[set[socket.socket]] = set()
"""This process's ends of all connections, to its parent and its children. A child closes those that it inherits."""


class Waitable(Protocol):
    """Something with a descriptor for poll(2)."""

    def fileno(self) -> int: ...


def wait_for(*sources: Waitable, changes: Waitable | None = None, timeout_s: float | None = None) -> set[int]:
    """Wait until a source has something to read, has ended or is broken, or until the time is over. Returns the
    descriptors of such sources. `changes` is a file that reports its changes, such as the kernel's table of mounts."""
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    if changes is not None:
        poll.register(changes, select.POLLPRI)
    return {number for number, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}


class Parent:
    """A server's connection to the process that started it. One thread."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def ready(self) -> None:
        """Tell that the server serves."""
        self.tell({"ready": True})

    def tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the parent has ended
            self._link.sendall(json.dumps(message).encode("utf-8") + b"\n")

    def fileno(self) -> int:
        return self._link.fileno()

    def wait(self, *sources: Waitable, timeout_s: float | None = None) -> bool:
        """Wait until one of the sources has something or the time is over. Returns False if the server has to end
        now."""
        found = wait_for(self, *sources, timeout_s=timeout_s)
        return self._link.fileno() not in found

    def receive(self) -> Any:
        """Wait for a value from the parent; None if the server has to end instead. The value is trusted."""
        with self._link.makefile("rb") as stream:
            head = stream.read(_SIZE.size)
            if len(head) < _SIZE.size:
                return None
            data = stream.read(*_SIZE.unpack(head))
        return pickle.loads(data)  # noqa: S301


Serve = Callable[[Parent], Any]
"""Serves until `parent.wait` says that it is the end; returns something for JSON."""


_left_open: list[contextlib.ExitStack] = []


def leave_open(stack: contextlib.ExitStack) -> None:
    """Close none of these resources in a process that ends now: other threads still use them, and each would fail with
    an error of its own."""
    _left_open.append(stack.pop_all())


class ServerProcess:
    """A running server. `result` is there when it has ended in good order, `exit_code` (negative: a signal's number)
    when it has ended in any way. One thread."""

    def __init__(self, name: str, pid: int, link: socket.socket) -> None:
        self.name = name
        self.pid = pid
        self.result: Any = None
        self.exit_code: int | None = None
        self._link = link
        self._received = bytearray()
        self._failure: MicaError | None = None
        self._is_ready = False
        self._is_told = False
        self._is_silent = False
        self._pidfd = os.pidfd_open(pid)

    def fileno(self) -> int:
        """Readable when the process has ended."""
        return self._pidfd

    def send(self, value: object) -> None:
        """Send a value to a child that calls `receive`. If the child has ended, `wait_until_ready` and `has_ended`
        tell."""
        data = pickle.dumps(value)
        with contextlib.suppress(ConnectionError):
            self._link.sendall(_SIZE.pack(len(data)) + data)

    def wait_until_ready(self, interrupt: Waitable | None = None) -> bool:
        """Returns False if `interrupt` had something first. Raises the error with which the child failed before it was
        ready."""
        while not self._is_ready:
            others = [] if interrupt is None else [interrupt]
            found = wait_for(*self._sources, *others)
            if interrupt is not None and interrupt.fileno() in found:
                return False
            self._hear()
            if self._failure is not None:
                self._told()
                raise self._failure
            if not self._is_ready and self.has_ended():
                self._told()
                raise UserError(f"The {self.name} died ({self.cause}).")
        return True

    def has_ended(self) -> bool:
        """Whether it has ended; if so, its last messages are taken."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self.exit_code is not None

    @property
    def cause(self) -> str:
        """The cause of its end, for people."""
        if self._failure is not None:
            return str(self._failure).rstrip(".")
        code = self.exit_code or 0
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def join(self) -> Any:
        """Wait for a server that ends by itself, and return its result. Raises the error with which it failed."""
        try:
            while not self.has_ended():
                wait_for(*self._sources)
                self._hear()
            if self._failure is not None or self.exit_code:
                raise self._failure or UserError(f"The {self.name} died ({self.cause}).")
        finally:
            self._told()
            self.kill()
        return self.result

    def stop(self, *, within_s: float = _END_S) -> None:
        """Make it end, and take its result. If it died before, or does not end, the log says so."""
        if not self.has_ended():
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_WR)
            until = time.monotonic() + within_s
            while not self.has_ended() and (left := until - time.monotonic()) > 0:
                wait_for(*self._sources, timeout_s=left)
                self._hear()
            if not self.has_ended():
                _log.error("the %s does not end and is killed", self.name)
                self._told()
        self.kill()
        if self.exit_code and not self._is_told:
            self._told()
            _log.error("the %s died (%s)", self.name, self.cause)

    def kill(self) -> None:
        """Kill it if it still runs; its result is lost. A process that waits in the kernel for an answer ends only with
        that answer, and is not waited for."""
        if self.has_ended():
            return
        os.kill(self.pid, signal.SIGKILL)
        self._told()
        wait_for(self, timeout_s=_DEATH_S)
        if not self.has_ended():
            _log.error("the %s, process %d, cannot be killed now", self.name, self.pid)

    @property
    def _sources(self) -> tuple[Waitable, ...]:
        return (self,) if self._is_silent else (self, self._link)

    def _told(self) -> None:
        self._is_told = True

    def _ended(self, status: int) -> None:
        self.exit_code = os.waitstatus_to_exitcode(status)
        self._hear()
        os.close(self._pidfd)
        self._pidfd = -1
        _ours.discard(self._link)
        self._link.close()

    def _hear(self) -> None:
        """Take the messages that it has sent so far."""
        try:
            while data := self._link.recv(1 << 16, socket.MSG_DONTWAIT):
                self._received += data
            self._is_silent = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self._is_silent = True
        *lines, rest = self._received.split(b"\n")
        self._received = rest
        for line in lines:
            message = json.loads(line)
            self._is_ready = self._is_ready or "ready" in message
            self.result = message.get("result", self.result)
            if "error" in message:
                self._failure = parse_error(message)


def start_server_process(serve: Serve, name: str = "server process") -> ServerProcess:
    """Run `serve` in a child; the caller has to `stop` it. `name` is for messages.

    Raises RuntimeError in a process with threads: the child would have their locks without them.
    """
    with _started(serve, name) as server:
        return server


def run_in_child(call: Callable[[], Any]) -> Any:
    """Run `call` in a child process and return its result as JSON has it. What the child does to its namespaces and
    threads does not change this process.

    Raises the MicaError that it raised.
    """
    with _started(lambda _: call(), "server process") as server:
        return server.join()


@contextlib.contextmanager
def open_server_process(serve: Serve, name: str = "server process", *, wait: bool = True) -> Iterator[ServerProcess]:
    """Run `serve` in a child until the block ends; with `wait` the block begins when it is ready.

    Raises the error with which the child failed before that.
    """
    with _started(serve, name) as server:
        try:
            if wait:
                server.wait_until_ready()
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def _started(serve: Serve, name: str) -> Iterator[ServerProcess]:
    """A child that is killed if the block fails, as by Ctrl-C. No signal comes between the fork and the block: else the
    child would work on while its caller removes the directory that it works in."""
    if threading.active_count() != 1:
        raise RuntimeError(f"The {name} cannot be forked from a process with {threading.active_count()} threads.")
    ours, theirs = socket.socketpair()
    with theirs:
        # The child's own settings are made before it takes a signal, too.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if not pid:
                _run_child(serve, theirs, ours)
        except OSError:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            raise
    _ours.add(ours)
    server = ServerProcess(name, pid, ours)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield server
    except BaseException:
        server.kill()
        raise


def _run_child(serve: Serve, link: socket.socket, theirs: socket.socket) -> Never:
    code = 1
    parent = Parent(link)
    try:
        linux.set_parent_death_signal(signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for inherited in (theirs, *_ours):
            inherited.close()
        _ours.clear()
        _ours.add(link)
        parent.tell({"result": serve(parent)})
        code = 0
    except MicaError as error:
        parent.tell(format_error(error))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
