"""One `runc run`, supervised: signals, standard error, terminal and exit code; the container ends when we do.

    runner ── pid namespace ─┐
                             └─ runc (process 1 there) ── container (pid namespace inside, process 1 there)

runc does not pass a parent's death on to its container. Therefore runc is made process 1 of a pid namespace of its
own, with SIGKILL as its parent death signal. When the runner ends in whatever way, the kernel kills runc; and when a
namespace's process 1 ends, the kernel kills everything in it and below. A killed runner leaves its directory, its
control group (`scratch.sweep`) and, if the container has a terminal of its own, a terminal in raw mode (`reset` helps).

runc writes its own errors to the same standard error as the container's program. It is read here and held back until
runc has written the pid file, that is until the program runs. Text from before is runc's and becomes one message.

Thread rule: call from the main thread, and with no other thread that takes signals; the parent death signal is bound
to the calling thread, and signals are waited for instead of handled.
"""

import contextlib
import errno
import json
import os
import re
import select
import signal
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Never

from mica import linux
from mica.errors import UserError
from mica.files import explained_os_error, mapped_os_errors, owned_fd, write_all

_FORWARDED: Final = frozenset(
    {
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGWINCH,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
)
_ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP})
# Process 1 ignores signals that it has no handler for, `sleep` for example: as with Docker the third one is final.
_PATIENCE: Final = 3
_SI_KERNEL: Final = 0x80
_HELD_MAX_BYTES: Final = 1 << 20
_LOG_MAX_BYTES: Final = 1 << 20
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_EXEC_ERROR: Final = re.compile(r'exec: "(?P<program>(?:[^"\\]|\\.)*)": (?P<reason>.+)$', re.DOTALL)


class StartError(UserError):
    """The program did not start. Exit codes are those of `docker run`: 127 not found, 126 not executable, else 125."""

    def __init__(self, message: str, *, exit_code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Bundle:
    """A directory with config.json, and how to run it. `directory` is also where runc keeps its state and log.

    ignores_cgroups: the configuration names no control group and runc shall not insist on one.
    """

    runc: str
    id: str
    directory: Path
    tty: bool = False
    interactive: bool = False
    ignores_cgroups: bool = False

    @property
    def pid_path(self) -> Path:
        return self.directory / "pid"

    @property
    def log_path(self) -> Path:
        return self.directory / "runc.log"

    def arguments(self) -> list[str]:
        # `--rootless` for root changes one thing: failing to make a control group is no error.
        return [
            self.runc,
            "--root", str(self.directory / "runc"),
            "--log", str(self.log_path), "--log-format", "json",
            *(["--rootless", "true"] if self.ignores_cgroups else []),
            "run", "--bundle", str(self.directory), "--pid-file", str(self.pid_path), self.id,
        ]  # fmt: skip


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Let no signal interrupt the block: a signal waits for `run_bundle`, or for the end of the block."""
    # SIGTTOU: giving the terminal its modes back from the background would stop us.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD, signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def run_bundle(bundle: Bundle) -> int:
    """Run to the end, within `blocked_signals`; the exit code, 128+n for death by signal. Raises StartError."""
    with contextlib.ExitStack() as stack:
        if bundle.tty:
            stack.enter_context(_kept_terminal_modes())
        stderr, stderr_write = os.pipe()
        stack.callback(os.close, stderr)
        alive, alive_write = os.pipe()
        stack.callback(os.close, alive_write)
        try:
            pid = _start(bundle, stderr_write, alive, alive_write)
        finally:
            os.close(stderr_write)
            os.close(alive)
        gate = _ErrorGate(stderr, bundle.pid_path)
        gate.start()
        code = _supervise(pid, bundle, gate)
        gate.join()
    if code > 0 and not bundle.pid_path.exists() and (reason := _read_reason(bundle.log_path)):
        raise explain_failure(reason)
    gate.flush()
    return code


def _start(bundle: Bundle, stderr: int, alive: int, alive_write: int) -> int:
    """Start runc as process 1 of a new pid namespace."""
    problems, problems_write = os.pipe()
    with owned_fd(problems):
        try:
            pid = _fork_into_pid_namespace()
            if pid == 0:
                _become_runc(bundle, stderr, alive, alive_write, problems_write)
        finally:
            os.close(problems_write)
        # A successful execve closes the descriptor: then there is nothing to read.
        problem = os.read(problems, 4096)
    if problem:
        os.waitpid(pid, 0)
        raise StartError(f"Cannot start runc: {problem.decode(errors='replace')}.", exit_code=125)
    return pid


def _fork_into_pid_namespace() -> int:
    """fork(2) into a new pid namespace; our own later children stay in ours."""
    with mapped_os_errors("start a container"), owned_fd(os.open("/proc/thread-self/ns/pid", os.O_RDONLY)) as ours:
        linux.unshare(linux.CLONE_NEWPID)
        pid = os.fork()
        if pid:
            linux.setns(ours, linux.CLONE_NEWPID)
        return pid


def _become_runc(bundle: Bundle, stderr: int, alive: int, alive_write: int, problems: int) -> Never:
    """The child between fork and execve: system calls only."""
    try:
        os.close(alive_write)
        linux.set_parent_death_signal(signal.SIGKILL)
        if select.select([alive], [], [], 0)[0]:  # end of file: the runner died before the line above
            os._exit(125)
        # runc looks itself up in /proc: it needs the /proc of the new namespace, which nobody else may see.
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("proc", "/proc", "proc", flags=linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        if not bundle.tty:
            # Ctrl-C reaches the runner alone, which forwards it: once, not twice.
            os.setsid()
            if not bundle.interactive:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stderr, 2)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                with contextlib.suppress(OSError):  # the descriptor of listdir itself, closed already
                    os.set_inheritable(int(name), False)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(bundle.runc, bundle.arguments(), {"PATH": _PATH})
    except OSError as error:
        os.write(problems, str(error.strerror).encode())
    finally:
        os._exit(125)


def _supervise(pid: int, bundle: Bundle, gate: "_ErrorGate") -> int:
    """Forward signals until runc has ended."""
    asked = 0
    while True:
        info = signal.sigwaitinfo({*_FORWARDED, signal.SIGCHLD})
        number = signal.Signals(info.si_signo)
        if number is signal.SIGCHLD:
            done, status = os.waitpid(pid, 0 if gate.has_ended else os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            continue
        if bundle.tty and info.si_code == _SI_KERNEL:
            continue  # from the terminal, to the whole process group: runc has it already
        asked += number in _ENDING
        if asked >= _PATIENCE or (number in _ENDING and not bundle.pid_path.exists()):
            # runc handles the signal only after it has set its handlers. Before that, the program need not be started.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 128 + (signal.SIGKILL if asked >= _PATIENCE else number)
        os.kill(pid, number)


class _ErrorGate(threading.Thread):
    """Copies runc's standard error to ours as soon as the container's program runs; before, it is held back."""

    def __init__(self, source: int, pid_path: Path) -> None:
        super().__init__(name="container-stderr", daemon=True)
        self.has_ended = False
        self._source = source
        self._pid_path = pid_path
        self._held = bytearray()
        self._is_open = False
        self._owner = threading.get_ident()

    def run(self) -> None:
        while True:
            # The program may have written its first words a moment before the pid file appears.
            timeout_s = 0.01 if self._held else None
            if select.select([self._source], [], [], timeout_s)[0]:
                data = os.read(self._source, 65536)
                if not data:
                    break
                self._held += data
            if self._may_pass():
                self.flush()
        self.has_ended = True
        # Wakes `_supervise` even if another thread of the process took the kernel's SIGCHLD.
        signal.pthread_kill(self._owner, signal.SIGCHLD)

    def _may_pass(self) -> bool:
        self._is_open = self._is_open or self._pid_path.exists() or len(self._held) > _HELD_MAX_BYTES
        return self._is_open

    def flush(self) -> None:
        with contextlib.suppress(OSError):  # nobody reads our standard error: the container goes on
            write_all(2, self._held)
        self._held.clear()


@contextlib.contextmanager
def _kept_terminal_modes() -> Iterator[None]:
    """Raw mode is set and undone by runc; if runc is killed, the old modes are put back here."""
    modes = termios.tcgetattr(0)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(0, termios.TCSADRAIN, modes)


def _read_reason(log_path: Path) -> str:
    """The last error of runc's log."""
    try:
        with log_path.open("rb") as file:
            lines = file.read(_LOG_MAX_BYTES).split(b"\n")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return ""
        raise explained_os_error(error, "read runc's log") from error
    for line in reversed(lines):
        with contextlib.suppress(ValueError, AttributeError):
            entry = json.loads(line)
            if entry.get("level") in {"error", "fatal"}:
                return str(entry.get("msg", ""))
    return ""


def explain_failure(reason: str) -> StartError:
    """One message, and Docker's exit code, for the text of runc."""
    if match := _EXEC_ERROR.search(reason):
        program = re.sub(r"\\(.)", r"\1", match["program"])
        why = match["reason"].strip().removeprefix(f"stat {program}: ")
        is_missing = "not found" in why or "no such file" in why
        return StartError(f"{program}: {why}.", exit_code=127 if is_missing else 126)
    why = reason.strip().removeprefix("runc run failed: ").removeprefix("unable to start container process: ")
    return StartError(f"Cannot start the container: {why}.", exit_code=125)
