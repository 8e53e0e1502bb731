"""Tests, on the running kernel, of what the data plane relies on; the choice of a method follows from them.

Each method is tried for real and as a node uses it, with a small union in a mount namespace of its own: that EROFS
mounts from a file or by loop; that overlayfs has data-only layers, asks the next one when the first answers with an
error, and sees a file that appeared in one meanwhile; and that an ordinary lower layer works as target of redirects.
The documentation of overlayfs calls "changes to underlying filesystems" undefined, so this is tested and not assumed.
Takes some 30 ms, in a child; `keptfacts.py` keeps the result.
"""

import contextlib
import errno
import functools
import io
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mica import linux
from mica.cache.cache import Cache
from mica.cache.shown import ShownFiles, begin_journal
from mica.dataplane.counts import SharedCounts
from mica.dataplane.datalayers import plan_stack
from mica.dataplane.images import MountedImages
from mica.dataplane.kernelfacts import KernelFacts
from mica.dataplane.messages import Question, Result
from mica.dataplane.nodedirectory import NodeDirectory
from mica.dataplane.objectfs import ObjectFileSystem
from mica.dataplane.unionimages import format_image, mask_entries
from mica.digest import Algorithm
from mica.errors import MicaError
from mica.files import mapped_os_errors, owned_fd
from mica.fuse import abi as fuse_abi
from mica.fuse.session import FuseSession, mount_fuse
from mica.layers.stack import Method
from mica.metaimage.inode import Inode
from mica.metaimage.writer import write_image
from mica.repo.localname import LocalName
from mica.repo.objects import Compression, pack
from mica.serverprocess import Parent, open_server_process, run_in_child
from mica.union.directories import Directory
from mica.union.overlay import open_overlay, plan_overlay, takes_one_by_one

_CONTENT = b"what the self-test fetches\n"
_DIRECTORY = Inode(stat.S_IFDIR | 0o755)
# EROFS from a file, and data-only layers of overlayfs.
_SINCE = {Method.KERNEL: (6, 12), Method.LOOP: (6, 5), Method.ORDINARY: (6, 12)}


def test_kernel(cache: Path) -> KernelFacts:
    """Try everything, in a child with mounts of its own."""
    with (
        mapped_os_errors(f"use the cache directory {cache}"),
        tempfile.TemporaryDirectory(prefix=".selftest-", dir=cache) as work,
    ):
        values: dict[str, Any] = run_in_child(lambda: _test_in_child(Path(work)))
    return KernelFacts(**values)


def _test_in_child(work: Path) -> dict[str, Any]:
    """An OSError of the child would be shown with its traceback, as a fault of ours."""
    with mapped_os_errors(f"test this kernel in {work.parent}"):
        return asdict(_test_in_private(work))


def _test_in_private(work: Path) -> KernelFacts:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    packed = pack(_CONTENT, Algorithm.SHA1, Compression.ZLIB)
    good = LocalName(packed.digest, Compression.ZLIB, len(_CONTENT))
    bad = good._replace(size=len(_CONTENT) + 1)
    _write_test_image(work / "image", {b"/d/bad": bad, b"/d/good": good})
    (work / "mask").write_bytes(format_image(mask_entries(Directory(b"/", os.fsencode(work)))))
    one_by_one = takes_one_by_one()
    against = {
        method.value: _reason(method, functools.partial(_test_method, method, work, good, one_by_one=one_by_one))
        for method in Method
        if method.uses_images
    }
    return KernelFacts(against, one_by_one, _resends(work))


def _reason(method: Method, test: Callable[[], None]) -> str:
    """Why a method does not work, in our words: those of a kernel that is too old do not help."""
    try:
        test()
    except (OSError, MicaError) as error:
        needed = _SINCE.get(method)
        if needed is not None and _running_version() < needed:
            return f"it needs Linux {needed[0]}.{needed[1]}"
        words = error.strerror if isinstance(error, OSError) else None
        return (words or str(error)).rstrip(".")
    return ""


def _running_version() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _write_test_image(path: Path, files: dict[bytes, LocalName]) -> None:
    image = io.BytesIO()
    entries = [(b"", _DIRECTORY), (b"/d", _DIRECTORY)]
    entries += [
        (name, Inode(stat.S_IFREG | 0o644, size=content.size, content=content)) for name, content in files.items()
    ]
    write_image(entries, image)
    path.write_bytes(image.getvalue())


class _Supplier:
    """Supplies the good file a moment later, from another thread, and not the bad one."""

    def __init__(self, cache: Cache, good: LocalName) -> None:
        self._cache = cache
        self._good = good
        self.filesystem: ObjectFileSystem

    def ask(self, question: Question) -> None:
        threading.Thread(target=self._supply, args=(question,), daemon=True).start()

    def _supply(self, question: Question) -> None:
        is_good = question.name == self._good
        if is_good:
            with self._cache.adding_place(self._cache.path(self._good)) as new:
                new.write(_CONTENT)
                os.close(new.commit())
        self.filesystem.supplied(Result(question.ticket, 0 if is_good else errno.EIO))


def _test_method(method: Method, work: Path, good: LocalName, *, one_by_one: bool) -> None:
    """Raises OSError or UserError unless the good file can be read and the bad one cannot."""
    base = work / method.value
    node = NodeDirectory(base / "node")
    node.create()
    for name in ("upper", "work", "merged"):
        (base / name).mkdir()
    images = MountedImages(node.layers, by_loop=method.by_loop)
    with (
        Cache(base / "cache") as cache,
        images.holding(work / "image") as image,
        contextlib.ExitStack() as stack,
    ):
        mask = None if method.has_data_layers else stack.enter_context(images.holding(work / "mask"))
        stack.enter_context(_serving(cache.root, node, good, shows_all=not method.has_data_layers))
        layers = plan_stack([image], cache, node, [0], mask=mask, one_by_one=one_by_one)
        plan = plan_overlay(layers.lower, base / "upper", base / "work", base / "merged", layers.options())
        with open_overlay(plan) as merged:
            if (merged / "d/good").read_bytes() != _CONTENT:
                raise OSError(errno.EIO, "a file that was fetched has other content")
            if os.listdir(merged) != ["d"]:
                raise OSError(errno.EIO, "the names of objects show")
            try:
                (merged / "d/bad").read_bytes()
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
            else:
                raise OSError(errno.EIO, "a file that could not be fetched was read")


def _resends(work: Path) -> bool:
    target = work / "resends"
    target.mkdir()
    with owned_fd(mount_fuse(target, name="mica#selftest")) as fd:
        try:
            os.write(fd, fuse_abi.format_resend())
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        finally:
            linux.umount2(target, linux.MNT_DETACH)
    return True


@contextlib.contextmanager
def _serving(cache: Path, node: NodeDirectory, good: LocalName, *, shows_all: bool) -> Iterator[None]:
    """Serve it in a process of its own: a process that is killed while it waits for its own answer never ends."""

    def serve(parent: Parent) -> None:
        with Cache(cache) as store, _mounted(store, node, good, shows_all=shows_all):
            parent.ready()
            parent.wait()

    with open_server_process(serve, "server of the self-test"):
        yield


@contextlib.contextmanager
def _mounted(cache: Cache, node: NodeDirectory, good: LocalName, *, shows_all: bool) -> Iterator[None]:
    supplier = _Supplier(cache, good)
    counts = SharedCounts(node.counts)
    with mapped_os_errors(f"mount the object filesystem on {node.objects}"):
        fd = mount_fuse(node.objects, name="mica#selftest")
    device = linux.mounted_device(node.objects)
    _, journal_fd = begin_journal(cache.root)
    with owned_fd(journal_fd), ShownFiles(journal_fd, node.objects) as shown:
        filesystem = supplier.filesystem = ObjectFileSystem(cache, 1, supplier, counts, shown, shows_all=shows_all)
        session = FuseSession(fd, filesystem, more_flags=fuse_abi.FUSE_NO_OPEN_SUPPORT)
        filesystem.complete = session.complete
        session.start()
        try:
            yield
        finally:
            linux.umount2(node.objects, linux.MNT_DETACH)
            session.stop(device)
