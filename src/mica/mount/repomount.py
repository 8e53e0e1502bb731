"""A repository mounted as a file system: the session, the watch for new revisions, and the figures at the end.

Runs in a process that does nothing else (`mica mount --foreground`): the thread that answers the kernel must not wait
for an interpreter that is busy with other work (docs/design/mounting.md).
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from mica.errors import MicaError
from mica.fetch.client import RepositoryClient, catalog_object
from mica.files import mapped_os_errors, owned_fd, replace_file
from mica.fuse.identity import REPOSITORY_PREFIX
from mica.fuse.passthrough import BackingFiles
from mica.fuse.preload import Preloads
from mica.fuse.session import FuseSession, open_session
from mica.fuse.tree import ROOT_INODE
from mica.fuse.treefs import TreeFileSystem
from mica.logs import logger
from mica.mount.magicattributes import MagicAttributes, MountState, Visibility
from mica.mount.repotree import RepositoryTree
from mica.repo.catalog import DEFAULT_TTL_S, NestedCatalog
from mica.repo.history import Tag
from mica.repo.manifest import Manifest
from mica.signals import EndSignals

_log = logger(__name__)
_KERNEL_CACHE_S = 86400.0
"""How long the kernel believes names and attributes: a revision does not change, and a new one tells it to forget."""

_RETRY_S = 180.0
"""Seconds until the servers are asked again after they did not answer (docs/format/client.md)."""


@contextlib.contextmanager
def mounted(
    client: RepositoryClient,
    target: Path,
    guard: AbstractContextManager[object] | None = None,
    *,
    follow: bool,
    revision: Tag | None = None,
    variables: Mapping[str, str] | None = None,
    passthrough: bool = False,
    visibility: Visibility = Visibility.ROOTONLY,
) -> Iterator[FuseSession]:
    """Mount the newest verified revision on a directory for the block; with `follow` newer ones replace it, and with
    `variables` its links are expanded (`RepositoryTree`). With `revision` it is that one, which stays.

    `guard` is entered once there is something to undo; until then a signal may end the process at any point.

    With `passthrough` the kernel reads large cached files itself where it can, and the mount counts as a stacked file
    system: one overlayfs fits on top of it, and nothing on top of that (docs/adr/0004-passthrough.md).
    """
    manifest = client.update().manifest if revision is None else revision_manifest(client, revision)
    tree = RepositoryTree(client, _root_of(manifest), variables=variables)
    tree.attributes(ROOT_INODE)
    backing = BackingFiles() if passthrough else None
    preloads = Preloads()
    state = MountState(manifest, backing=backing, tag="" if revision is None else revision.name)
    magic = MagicAttributes(client, tree, state, visibility)
    filesystem = TreeFileSystem(
        tree,
        entry_timeout_s=_KERNEL_CACHE_S,
        attr_timeout_s=_KERNEL_CACHE_S,
        backing=backing,
        preloads=preloads,
        magic=magic.get,
        listed_magic=magic.listed,
    )
    name = f"{REPOSITORY_PREFIX}{client.fqrn}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(guard or contextlib.nullcontext())
        stack.callback(filesystem.close)
        with mapped_os_errors(f"mount {client.fqrn} on {target}"):
            session = stack.enter_context(open_session(target, filesystem, name=name, backing=backing))
        preloads.connect(session.store)
        if backing is not None:
            with owned_fd(client.open_object(catalog_object(_root_of(manifest)))) as descriptor:
                backing.check(descriptor)
        if follow and revision is None:
            stack.enter_context(_following(client, tree, filesystem, session, state))
        yield session


def revision_manifest(client: RepositoryClient, revision: Tag) -> Manifest:
    """The manifest as it would be if an older revision, which the newest one vouches for, were the newest."""
    return replace(
        client.update().manifest,
        root_catalog=revision.root_catalog,
        root_catalog_size=revision.size,
        revision=revision.revision,
        published_at=revision.timestamp,
    )


def write_statistics(client: RepositoryClient, path: Path) -> None:
    """Write the counters of the mount so far, as JSON."""
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


def wait_for_end(session: FuseSession, end: EndSignals, interval_s: float = 1.0) -> None:
    """Return when the file system was unmounted, or at the latest an interval after a signal has come."""
    while not session.wait(interval_s) and not end.has_come():
        pass
