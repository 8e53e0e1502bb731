"""The node of a host: mounts the object filesystem, and keeps its servers running.

    supervisor (one thread: it forks)
    ├── service    fetches, prepares layers           `dataplane/service.py`
    ├── session    answers the kernel                 `dataplane/sessionprocess.py`
    └── others     servers that the caller gives      engines' drivers
    holder         outlives them all                  `holder.py`

A server that dies is started again: the new service is asked again for what the old one had not answered, the new
session gets again the requests that the old one had taken. If the file system was aborted, or unmounted for good, the
node ends with an error and the next start mounts again. When the supervisor itself is killed its servers end with it,
mounts and containers stay, and the kernel's requests wait with the holder for the next `mica node`, which takes the
session over. Under systemd the service manager's descriptor store holds the session instead (`systemd.py`).
"""

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from mica import linux
from mica.daemon.nodeservers import NodeSettings, ServerSpec, service_of, session_of
from mica.daemon.objectmount import ObjectMount, quit_holder
from mica.daemon.restarts import Servers
from mica.daemon.systemd import ServiceManager
from mica.dataplane.nodedirectory import NodeDirectory, read_facts
from mica.errors import TemporaryError, UserError
from mica.files import close_inherited, lock_holder, locked, mapped_os_errors, replace_file
from mica.serverprocess import Parent, Serve, start_server_process, wait_for
from mica.signals import EndSignals

_STOP_S: Final = 60.0
_LOCK_S: Final = 0.5
_LOOK_S: Final = 1.0
"""How often the table of mounts is looked at, at most: it changes with every container of the host."""


def run_node(
    settings: NodeSettings, ready: Callable[[], None], manager: ServiceManager, others: Sequence[ServerSpec] = ()
) -> None:
    """Run until SIGTERM or SIGINT; mounts and containers stay, for a successor. To be called without other threads.
    `others` run beside the node's own servers: started after them, stopped before.

    Raises TemporaryError if a node runs in this directory already, UserError if it cannot mount.
    """
    node = settings.directory
    node.create()
    with _locked_alone(node), EndSignals() as end:
        settings = _numbered(settings)
        with ObjectMount(settings, manager) as mount, Servers() as servers:
            _write_facts(settings, mount)
            session = ServerSpec(
                "server of the object filesystem", lambda follows: _session(settings, mount, follows=follows)
            )
            service = ServerSpec("service", lambda _: service_of(settings))
            for spec in (service, session, *others):
                servers.start(spec)
            if servers.wait_until_ready(end):
                ready()
                manager.notify("READY=1")
                _keep_running(servers, mount, end)
                if not settings.resends:
                    # The session answers everything before it ends, for which it needs a service that lives.
                    servers.tend()


@contextlib.contextmanager
def _locked_alone(node: NodeDirectory) -> Iterator[None]:
    """The node's lock for the block. Raises TemporaryError that names the node that has it."""
    with contextlib.ExitStack() as stack:
        try:
            # A process that checks whether a node runs has the lock for a moment.
            stack.enter_context(locked(node.lock, what=f"The node's directory {node.path}", wait_s=_LOCK_S))
        except TemporaryError as error:
            holder = lock_holder(node.lock) or read_facts(node).get("pid", "unknown")
            raise TemporaryError(
                f"A node runs in {node.path} already: process {holder}.",
                hint=f"mica status tells what it serves; to end it for good: mica node --stop --node {node.path}",
            ) from error
        yield


def _session(settings: NodeSettings, mount: ObjectMount, *, follows: bool) -> Serve:
    mount.renew_journal()
    return session_of(settings, mount.fd, mount.journal_fd, resend=follows or mount.is_taken_over)


def _keep_running(servers: Servers, mount: ObjectMount, end: EndSignals) -> None:
    primer = start_server_process(lambda parent: _prime(parent, mount.path), "first user of the object filesystem")
    with open("/proc/self/mountinfo", "rb") as mounts:
        looked_at = 0.0
        while True:
            pause_s = looked_at + _LOOK_S - time.monotonic()
            others = (end, *servers.sources, *mount.sources, *(() if primer.has_ended() else (primer,)))
            if pause_s > 0:
                found = wait_for(*others, timeout_s=pause_s)
            else:
                found = wait_for(*others, changes=mounts)
                looked_at = time.monotonic()
            if end.fileno() in found:
                return
            if found:
                mount.tend()
                servers.tend()


def _prime(parent: Parent, objects: Path) -> None:
    """Use the object filesystem for the first time, in a process of its own. That process cannot be killed until it has
    its answer, perhaps only when the next node serves. So it must not keep what shows that this node lives: its lock,
    its connection to the holder, the descriptor of the object filesystem."""
    from mica.dataplane.objectfs import prime

    close_inherited(parent.fileno())
    prime(objects)


def run_drivers(drivers: Sequence[ServerSpec], ready: Callable[[], None], manager: ServiceManager) -> None:
    """Run engines' drivers without a node until SIGTERM or SIGINT. To be called without other threads."""
    with EndSignals() as end, Servers() as servers:
        for spec in drivers:
            servers.start(spec)
        if servers.wait_until_ready(end):
            ready()
            manager.notify("READY=1")
            while end.fileno() not in wait_for(end, *servers.sources):
                servers.tend()


def stop_node(directory: Path) -> None:
    """End a node for good: its servers, its holder, its mounts. Programs that still use them get errors for content
    that is not in the cache. Raises UserError if there is no node, TemporaryError if it does not end."""
    node = NodeDirectory(directory)
    facts = read_facts(node)
    if not facts:
        raise UserError(f"There is no node in {directory}.")
    with contextlib.suppress(TemporaryError), locked(node.lock, what="The node"):
        facts = {}  # it does not run
    if facts:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(facts["pid"]), signal.SIGTERM)
    with _locked_soon(node), mapped_os_errors(f"remove {directory}"):
        quit_holder(node)
        for target in (*node.layers.glob("*"), node.layers, node.objects):
            with contextlib.suppress(FileNotFoundError):  # an earlier attempt came so far
                linux.unmount_all(target)
                target.rmdir()
        for file in (node.facts, node.holder, node.service, node.counts, node.lock):
            file.unlink(missing_ok=True)
        try:
            node.path.rmdir()
        except OSError as error:
            # Another mount is on the directory, or there are files in it: it is not ours.
            if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
                raise


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
    """Give repositories the numbers that they had under the predecessor: its unions still use these numbers."""
    node = settings.directory
    facts = read_facts(node)
    before = facts.get("repositories", [])
    is_mounted = linux.mounted_device(node.objects) is not None
    hint = "End the node for good first: mica node --stop"
    if is_mounted and not facts:
        raise UserError(f"{node.facts}, which describes the last node's mounts, is damaged or missing.", hint=hint)
    places = {place.fqrn: place for place in settings.locations}
    gone = [fqrn for fqrn in before if fqrn not in places]
    if gone and is_mounted:
        raise UserError(
            f"Repository {gone[0]} is not configured any more, but containers of the last node may still use it.",
            hint=f"Configure it again, or: {hint}",
        )
    if is_mounted and facts.get("cache", os.fspath(settings.cache)) != os.fspath(settings.cache):
        raise UserError(
            f"The cache is {settings.cache} now, but containers of the last node use {facts['cache']}.",
            hint=f"Configure that one, or: {hint}",
        )
    order = [fqrn for fqrn in before if fqrn in places]
    order += [fqrn for fqrn in places if fqrn not in order]
    return replace(settings, locations=tuple(places[fqrn] for fqrn in order))


def _write_facts(settings: NodeSettings, mount: ObjectMount) -> None:
    document = {
        "pid": os.getpid(),
        "repositories": [place.fqrn for place in settings.locations],
        "method": settings.method.value,
        "cache": os.fspath(settings.cache),
        "journal": mount.journal,
    }
    with mapped_os_errors(f"write {settings.directory.facts}"):
        replace_file(settings.directory.facts, json.dumps(document).encode("ascii"), mode=0o600)
