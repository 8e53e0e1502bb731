"""A repository mounted as a file system: the session, the watch for new revisions, and the figures at the end.

Runs in a process of its own (`mica mount --foreground`), which does nothing else: the thread that answers the kernel
must not wait for an interpreter that is busy with other work (docs/design/mounting.md).
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mica.errors import MicaError
from mica.fetch.client import RepositoryClient, catalog_object
from mica.files import mapped_os_errors, owned_fd, replace_file
from mica.logs import logger
from mica.mount.fuse_session import FuseSession, open_session
from mica.mount.magic import MagicAttributes, MountState
from mica.mount.mountinfo import REPOSITORY_PREFIX
from mica.mount.passthrough import BackingFiles
from mica.mount.repotree import RepositoryTree
from mica.mount.tree import ROOT_INODE
from mica.mount.treefs import TreeFileSystem
from mica.repo.catalog import DEFAULT_TTL_S, NestedCatalog
from mica.repo.manifest import Manifest

_log = logger(__name__)
_KERNEL_CACHE_S = 86400.0
"""How long the kernel believes names and attributes: a revision does not change, and a new one tells it to forget."""

_RETRY_S = 180.0
"""Seconds until the servers are asked again after they did not answer (docs/format/client.md)."""


@contextlib.contextmanager
def mounted(
    client: RepositoryClient, target: Path, *, follow: bool, variables: Mapping[str, str], passthrough: bool = False
) -> Iterator[FuseSession]:
    """Mount the newest verified revision on a directory for the block; with `follow` newer ones replace it.

    With `passthrough` the kernel reads large cached files itself where it can, and the mount counts as a stacked file
    system: one overlayfs fits on top of it, and nothing on top of that (docs/adr/0005-passthrough.md).
    """
    manifest = client.update().manifest
    tree = RepositoryTree(client, _root_of(manifest), variables=variables)
    tree.attributes(ROOT_INODE)
    backing = BackingFiles() if passthrough else None
    state = MountState(manifest, backing=backing)
    filesystem = TreeFileSystem(
        tree,
        entry_timeout_s=_KERNEL_CACHE_S,
        attr_timeout_s=_KERNEL_CACHE_S,
        backing=backing,
        magic=MagicAttributes(client, tree, state).get,
    )
    name = f"{REPOSITORY_PREFIX}{client.fqrn}"
    with contextlib.ExitStack() as stack:
        stack.callback(filesystem.close)
        with mapped_os_errors(f"mount {client.fqrn} on {target}"):
            session = stack.enter_context(open_session(target, filesystem, name=name, backing=backing))
        if backing is not None:
            with owned_fd(client.open_object(catalog_object(_root_of(manifest)))) as descriptor:
                backing.check(descriptor)
        if follow:
            stack.enter_context(_following(client, tree, filesystem, session, state))
        yield session


def write_statistics(client: RepositoryClient, path: Path) -> None:
    """What the mount has transferred so far, as JSON."""
    figures = json.dumps(client.counter.read()._asdict()).encode("ascii") + b"\n"
    with mapped_os_errors(f"write {path}"):
        replace_file(path, figures, durable=False)


@contextlib.contextmanager
def _following(
    client: RepositoryClient,
    tree: RepositoryTree,
    filesystem: TreeFileSystem,
    session: FuseSession,
    state: MountState,
) -> Iterator[None]:
    ended = threading.Event()
    state.looks_again_at = time.monotonic()

    def wait(seconds: float) -> bool:
        state.looks_again_at = time.monotonic() + seconds
        return not ended.wait(seconds)

    def watch() -> None:
        wait_s = _ttl_of(client, state.manifest)
        while wait(wait_s):
            try:
                newest = client.update().manifest
                if newest.revision > state.manifest.revision:
                    names = tree.advance(_root_of(newest))
                    _forget(session, filesystem, names)
                    _log.info("%s is at revision %d now", client.fqrn, newest.revision)
                    state.manifest = newest
                wait_s = _ttl_of(client, state.manifest)
            except (MicaError, OSError) as error:
                _log.warning("revision %d of %s stays: %s", state.manifest.revision, client.fqrn, error)
                wait_s = _RETRY_S

    thread = threading.Thread(target=watch, name="revisions", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1.0)


def _forget(session: FuseSession, filesystem: TreeFileSystem, names: set[bytes]) -> None:
    filesystem.forget_listings()
    for name in names:
        session.invalidate_entry(ROOT_INODE, name)
    session.invalidate_inode(ROOT_INODE)


def _ttl_of(client: RepositoryClient, manifest: Manifest) -> float:
    """The root catalog's property counts, not the manifest's (docs/format/client.md)."""
    return float(client.catalog(_root_of(manifest)).ttl_s or DEFAULT_TTL_S)


def _root_of(manifest: Manifest) -> NestedCatalog:
    return NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)


def wait_for_end(session: FuseSession, poll: Callable[[], None], interval_s: float = 1.0) -> None:
    """Return when the file system was unmounted; `poll` runs now and then."""
    while not session.wait(interval_s):
        poll()
