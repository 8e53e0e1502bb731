"""A node for one run: its service and its object filesystem as children of the caller, gone with it.

Everything is in a directory on a file system of its own in the caller's private mount namespace, so that nothing is
left whatever happens. The service begins to fetch metadata images as soon as it lives, while the caller goes on with
other things. To be opened by a process without threads.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mica import linux
from mica.fetch.cache import Cache
from mica.fetch.location import RepositoryLocation
from mica.files import mapped_os_errors
from mica.mount.fuse_session import mount_fuse
from mica.mount.serverprocess import ServerProcess, open_server_process
from mica.node.client import open_node
from mica.node.directory import NodeDirectory
from mica.node.earlyservice import EarlyService
from mica.node.servers import FILESYSTEM_NAME, NodeSettings, session_of
from mica.node.stack import LayerStack, Method
from mica.thin.descriptor import ThinDescriptor, format_descriptor
from mica.thin.trace import Piece


@contextlib.contextmanager
def private_layers(
    descriptor: ThinDescriptor,
    locations: Sequence[RepositoryLocation],
    cache: Path,
    directory: Path,
    method: Method,
    servers: list[ServerProcess],
    *,
    early: EarlyService | None = None,
    program: str | None = None,
    recorded: list[Piece] | None = None,
) -> Iterator[LayerStack]:
    """The layers of an image for the block, in which `program` will be started; `early` may have begun already.

    `servers` gets the children, whose results are their traffic, and `recorded` after the block what was asked for.

    Call it in a private mount namespace; `directory` exists. Raises what the service failed with.
    """
    node = NodeDirectory(directory)
    with contextlib.ExitStack() as stack:
        with mapped_os_errors(f"use {directory} for a private node"):
            linux.mount("mica", directory, "tmpfs", flags=linux.MS_NOSUID | linux.MS_NODEV, data="mode=0700")
        stack.callback(linux.umount2, directory, linux.MNT_DETACH)
        node.create()
        with Cache(cache):
            pass  # made once here, and not by both children at once
        settings = NodeSettings(
            node, cache, tuple(locations), method, recorded=None if recorded is None else directory / "recorded"
        )
        if recorded is not None:
            stack.callback(_read_recorded, directory / "recorded", recorded)
        early = early or stack.enter_context(EarlyService())
        stack.callback(early.stop)
        servers.append(service := early.begin(settings, descriptor, program))
        with mapped_os_errors(f"mount the object filesystem on {node.objects}"):
            fuse_fd = mount_fuse(node.objects, name=FILESYSTEM_NAME)
        stack.callback(linux.umount2, node.objects, linux.MNT_DETACH)
        try:
            servers.append(stack.enter_context(open_server_process(session_of(settings, fuse_fd), wait=False)))
        finally:
            os.close(fuse_fd)
        service.wait_until_ready()
        client = stack.enter_context(open_node(node.service))
        yield LayerStack.from_json(client.ask("layers", descriptor=json.loads(format_descriptor(descriptor))))


def _read_recorded(path: Path, recorded: list[Piece]) -> None:
    from mica.node.traces import read_recorded

    recorded.extend(read_recorded(path))
