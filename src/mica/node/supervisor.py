"""The node of a host: mounts the object filesystem, and keeps its servers running.

    supervisor (one thread: it forks)
    ├── service    fetches, prepares layers           `service.py`, `preparing.py`
    ├── session    answers the kernel                 `sessionprocess.py`
    └── others     what the caller gives              engines' drivers
    holder         outlives them all                  `holder.py`

A server that dies is started anew: the service is asked again for what it owed, the session is given again what it had
taken. When the supervisor itself is killed its servers end with it, mounts and containers stay, and the kernel's
requests wait with the holder for the next `mica node`, which takes the session over. Under systemd the service
manager's descriptor store holds the session instead (`systemd.py`).
"""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Never, Self

from mica import linux
from mica.errors import TemporaryError, UserError
from mica.files import locked, mapped_os_errors, replace_file
from mica.logs import logger
from mica.mount.fuse_session import mount_fuse
from mica.mount.serverprocess import ServerProcess, Stopped, start_server_process
from mica.node.directory import NodeDirectory
from mica.node.servers import FILESYSTEM_NAME, NodeSettings, ServerSpec, service_of, session_of
from mica.node.sockets import connect, listening
from mica.node.systemd import ServiceManager

_log = logger(__name__)
_RESTART_S = 0.2
_STOP_S = 15.0
_HOLDER = Path(__file__).with_name("holder.py")


def run_node(
    settings: NodeSettings, ready: Callable[[], None], manager: ServiceManager, others: Sequence[ServerSpec] = ()
) -> None:
    """Run until SIGTERM or SIGINT; mounts and containers stay, for a successor. To be called without other threads.
    `others` run beside the node's own servers: started after them, stopped before.

    Raises TemporaryError if a node runs in this directory already, UserError for what cannot be mounted.
    """
    node = settings.directory
    node.create()
    with locked(node.lock, what=f"The node's directory {node.path}"), contextlib.ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        settings = _numbered(settings)
        with contextlib.suppress(Stopped):
            fuse_fd, is_taken_over = stack.enter_context(_session_descriptor(settings, manager))
            session = ServerSpec(
                "server of the object filesystem",
                lambda follows: session_of(settings, fuse_fd, resend=follows or is_taken_over),
            )
            service = ServerSpec("service", lambda _: service_of(settings))
            with _Servers((service, session, *others), essential=session) as servers:
                servers.wait_until_ready()
                ready()
                manager.notify("READY=1")
                servers.keep_running()


def stop_node(directory: Path) -> None:
    """End a node for good: its servers, its holder, its mounts. Programs that still use them get errors for what is
    not in the cache. Raises UserError if there is none, TemporaryError if it does not end."""
    node = NodeDirectory(directory)
    facts = _read_facts(node)
    if not facts:
        raise UserError(f"There is no node in {directory}.")
    with contextlib.suppress(TemporaryError), locked(node.lock, what="The node"):
        facts = {}  # it does not run
    if facts:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(facts["pid"]), signal.SIGTERM)
    with _locked_soon(node), mapped_os_errors(f"remove {directory}"):
        with contextlib.suppress(OSError), connect(node.holder) as holder:
            holder.send(b"quit")
        for target in (*sorted(node.layers.iterdir()), node.layers, node.objects):
            with contextlib.suppress(OSError):
                linux.umount2(target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
            target.rmdir()
        for file in (node.facts, node.holder, node.service, node.counts, node.lock):
            file.unlink(missing_ok=True)
        node.path.rmdir()


def _locked_soon(node: NodeDirectory) -> contextlib.ExitStack:
    """The node's lock, entered; waits a little for a node that is ending."""
    until = time.monotonic() + _STOP_S
    while True:
        lock = locked(node.lock, what=f"The node in {node.path}")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock)
            except TemporaryError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                return stack.pop_all()


def _numbered(settings: NodeSettings) -> NodeSettings:
    """Give repositories the numbers they had under the predecessor, whose unions have them in their mounts."""
    before = _read_facts(settings.directory).get("repositories", [])
    places = {place.fqrn: place for place in settings.locations}
    gone = [fqrn for fqrn in before if fqrn not in places]
    if gone and linux.mounted_device(settings.directory.objects) is not None:
        raise UserError(
            f"Repository {gone[0]} is not configured any more, but containers of the last node may still use it.",
            hint="Configure it again, or end the node for good first: mica node --stop",
        )
    order = [fqrn for fqrn in before if fqrn in places]
    order += [fqrn for fqrn in places if fqrn not in order]
    document = {"pid": os.getpid(), "repositories": order, "method": settings.method.value}
    with mapped_os_errors(f"write {settings.directory.facts}"):
        replace_file(settings.directory.facts, json.dumps(document).encode("ascii"), mode=0o600)
    return replace(settings, locations=tuple(places[fqrn] for fqrn in order))


def _read_facts(node: NodeDirectory) -> dict[str, Any]:
    try:
        values = json.loads(node.facts.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@contextlib.contextmanager
def _session_descriptor(settings: NodeSettings, manager: ServiceManager) -> Iterator[tuple[int, bool]]:
    """The descriptor of the object filesystem, and whether a predecessor served it. Somebody keeps it after us."""
    node = settings.directory
    with contextlib.ExitStack() as stack:
        kept = manager.kept_descriptor()
        if kept is not None:
            stack.callback(os.close, kept)
            yield kept, True
            return
        holder = _connect_to_holder(node)
        if holder is not None:
            connection, fd = holder
            stack.enter_context(connection)
            stack.callback(os.close, fd)
            yield fd, True
            return
        fd = _mount(node)
        stack.callback(os.close, fd)
        if not manager.keep_descriptor(fd):
            stack.enter_context(_start_holder(node, fd, settings.deadline_s))
        yield fd, False


def _connect_to_holder(node: NodeDirectory) -> tuple[socket.socket, int] | None:
    try:
        connection = connect(node.holder)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ECONNREFUSED}:
            return None
        raise
    with contextlib.ExitStack() as stack:
        stack.enter_context(connection)
        _, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
        if not descriptors:
            return None
        stack.pop_all()
        return connection, descriptors[0]


def _mount(node: NodeDirectory) -> int:
    """Mount anew. What a node that died with its holder left answers nobody any more."""
    with mapped_os_errors(f"mount the object filesystem on {node.objects}"):
        while linux.mounted_device(node.objects) is not None:
            linux.umount2(node.objects, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
        for layer in node.layers.iterdir():
            with contextlib.suppress(OSError):
                linux.umount2(layer, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
            layer.rmdir()
        return mount_fuse(node.objects, name=FILESYSTEM_NAME)


def _start_holder(node: NodeDirectory, fuse_fd: int, deadline_s: float) -> socket.socket:
    """A holder in a session of its own, and the connection that shows it that we live."""
    with listening(node.holder, is_kept=True) as listener:
        command = [
            sys.executable,
            "-I",
            "-S",
            os.fspath(_HOLDER),
            str(listener.fileno()),
            str(fuse_fd),
            str(deadline_s),
        ]
        process = subprocess.Popen(
            command, pass_fds=(listener.fileno(), fuse_fd), start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        # It outlives us on purpose.
        process.returncode = 0
    found = _connect_to_holder(node)
    if found is None:
        raise UserError("The holder of the object filesystem could not be started.")
    connection, copy = found
    os.close(copy)
    return connection


class _Servers:
    """The children, started anew when they die; stopped at the end of the block, the last one first."""

    def __init__(self, specs: Sequence[ServerSpec], essential: ServerSpec) -> None:
        self._essential = essential
        self._running: dict[str, tuple[ServerSpec, ServerProcess]] = {}
        for spec in specs:
            self._start(spec, follows=False)

    def _start(self, spec: ServerSpec, *, follows: bool) -> None:
        self._running[spec.name] = (spec, start_server_process(spec.make(follows)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _spec, server in reversed(self._running.values()):
            server.stop()

    def wait_until_ready(self) -> None:
        for _, server in self._running.values():
            server.wait_until_ready()

    def keep_running(self) -> None:
        """Until the essential one ends by itself; a signal's exception ends it before."""
        while True:
            pid, status = os.wait()
            dead = [(spec, server) for spec, server in self._running.values() if server.pid == pid]
            for spec, server in dead:
                if spec is self._essential and status == 0:
                    return
                _log.error("the %s died (%s) and is started anew", spec.name, _cause(status))
                server.stop()
                time.sleep(_RESTART_S)
                self._start(spec, follows=True)


def _cause(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _stop(_signal: int, _frame: object) -> Never:
    raise Stopped
