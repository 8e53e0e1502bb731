"""The keeper of a private node: it forks the two servers, mounts the object filesystem, and starts servers again when
they die. Begun by `earlyservice.py`; it ends with the run."""

import contextlib
import os

from mica.cache.cache import Cache
from mica.cache.shown import begin_journal, is_removed, renew_journal
from mica.daemon.nodeservers import FILESYSTEM_NAME, NodeSettings, ServerSpec, service_of, session_of
from mica.daemon.objectmount import is_connected
from mica.daemon.restarts import Servers
from mica.errors import UserError
from mica.files import mapped_os_errors
from mica.fuse.session import mount_fuse
from mica.serverprocess import Parent, Serve
from mica.thin.descriptor import ThinDescriptor


def keep_private_node(
    settings: NodeSettings, first: ThinDescriptor, program: str | None, parent: Parent
) -> dict[str, int]:
    """The keeper's part, in the mount namespace of the run; returns the service's traffic."""
    with contextlib.ExitStack() as stack, Servers() as servers:
        service = ServerSpec("service", lambda _: service_of(settings, first=first, program=program))
        servers.start(service)
        objects = settings.directory.objects
        with mapped_os_errors(f"mount the object filesystem on {objects}"):
            fuse_fd = mount_fuse(objects, name=FILESYSTEM_NAME)
        stack.callback(os.close, fuse_fd)
        with mapped_os_errors(f"write to the cache {settings.cache}"):
            journal, journal_fd = begin_journal(settings.cache)
        stack.callback((settings.cache / "shown" / journal).unlink, missing_ok=True)
        stack.callback(os.close, journal_fd)
        session = ServerSpec(
            "server of the object filesystem",
            lambda follows: _session(settings, fuse_fd, (journal, journal_fd), follows=follows),
        )
        servers.start(session)
        if servers.wait_until_ready(parent):
            parent.ready()
            while parent.wait(*servers.sources):
                if not is_connected(fuse_fd):
                    raise UserError("The object filesystem of this run was unmounted or aborted.")
                servers.tend()
    result: dict[str, int] = servers.results[service.name] or {}
    return result


def _session(settings: NodeSettings, fuse_fd: int, journal: tuple[str, int], *, follows: bool) -> Serve:
    """`journal`: its id and descriptor. If it was removed with the cache, it is put back before it is written to."""
    name, journal_fd = journal
    if is_removed(journal_fd):
        with mapped_os_errors(f"write to the cache {settings.cache}"), Cache(settings.cache):
            renew_journal(settings.cache, name, journal_fd)
    return session_of(settings, fuse_fd, journal_fd, resend=follows)
