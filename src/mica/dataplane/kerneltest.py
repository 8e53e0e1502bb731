"""Proof, on the running kernel, of what the data plane relies on; and the choice of a method that follows from it.

Each fact is tried for real, with a small union in a mount namespace of its own: that EROFS mounts from a file or by
loop, that overlayfs has data-only layers, asks the next one when the first answers with an error, and sees a file that
appeared in one meanwhile; and that an ordinary lower layer works as target of redirects. What the documentation of
overlayfs calls undefined ("changes to underlying filesystems") is thus known, not hoped for. Takes some 20 ms, in a
child; `kernelfacts.py` keeps the result.
"""

import contextlib
import errno
import io
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mica import linux
from mica.digest import Algorithm
from mica.errors import MicaError
from mica.fetch.cache import Cache
from mica.files import mapped_os_errors
from mica.metaimage.inode import Inode
from mica.metaimage.writer import write_image
from mica.mount import fuse_abi
from mica.mount.fuse_session import FuseSession, mount_fuse
from mica.mount.imagemount import mount_image
from mica.mount.overlay import OverlayOptions, open_overlay, plan_overlay
from mica.mount.serverprocess import run_in_child
from mica.node.counts import SharedCounts
from mica.node.directory import NodeDirectory
from mica.node.images import format_mask
from mica.node.kernelfacts import KernelFacts
from mica.node.messages import Question, Result
from mica.node.objectfs import ObjectFileSystem
from mica.node.stack import plan_stack
from mica.repo.localname import LocalName
from mica.repo.objects import Compression, pack

_CONTENT = b"what the self-test fetches\n"
_DIRECTORY = Inode(stat.S_IFDIR | 0o755)


def test_kernel(cache: Path) -> KernelFacts:
    """Try everything, in a child with mounts of its own."""
    with (
        mapped_os_errors(f"use the cache directory {cache}"),
        tempfile.TemporaryDirectory(prefix=".selftest-", dir=cache) as work,
    ):
        values: dict[str, Any] = run_in_child(lambda: asdict(_test_in_private(Path(work))))
    return KernelFacts(**values)


def _test_in_private(work: Path) -> KernelFacts:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    packed = pack(_CONTENT, Algorithm.SHA1, Compression.ZLIB)
    good = LocalName(packed.digest, Compression.ZLIB, len(_CONTENT))
    bad = good._replace(size=len(_CONTENT) + 1)
    _write_test_image(work / "image", {b"/d/bad": bad, b"/d/good": good})
    (work / "mask").write_bytes(format_mask(_DIRECTORY))
    by_file = _reason(lambda: _mount_both(work, by_loop=False))
    by_loop = _reason(lambda: _mount_both(work, by_loop=True))
    if by_file and by_loop:
        return KernelFacts(by_file, by_loop, "there are no metadata images", "there are no metadata images")
    trigger = _reason(lambda: _test_union(work / "trigger", work, good, shows_all=False))
    ordinary = _reason(lambda: _test_union(work / "ordinary", work, good, shows_all=True))
    return KernelFacts(by_file, by_loop, trigger, ordinary)


def _reason(test: Callable[[], None]) -> str:
    try:
        test()
    except OSError as error:
        return error.strerror or str(error)
    except MicaError as error:
        return str(error).rstrip(".")
    return ""


def _write_test_image(path: Path, files: dict[bytes, LocalName]) -> None:
    image = io.BytesIO()
    entries = [(b"", _DIRECTORY), (b"/d", _DIRECTORY)]
    entries += [
        (name, Inode(stat.S_IFREG | 0o644, size=content.size, content=content)) for name, content in files.items()
    ]
    write_image(entries, image)
    path.write_bytes(image.getvalue())


def _mount_both(work: Path, *, by_loop: bool) -> None:
    for name in ("image", "mask"):
        target = work / f"{name}.mounted"
        target.mkdir(exist_ok=True)
        mount_image(work / name, target, by_loop=by_loop)


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


def _test_union(base: Path, work: Path, good: LocalName, *, shows_all: bool) -> None:
    """Raises OSError or UserError unless the good file can be read and the bad one cannot."""
    node = NodeDirectory(base / "node")
    node.create()
    for name in ("upper", "work", "merged"):
        (base / name).mkdir()
    with Cache(base / "cache") as cache, _serving(cache, node, good, shows_all=shows_all):
        mask = work / "mask.mounted" if shows_all else None
        stack = plan_stack([work / "image.mounted"], cache, node, [0], mask=mask)
        options = OverlayOptions(data=stack.data, has_stubs=stack.has_stubs)
        plan = plan_overlay(stack.lower, base / "upper", base / "work", base / "merged", options)
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


@contextlib.contextmanager
def _serving(cache: Cache, node: NodeDirectory, good: LocalName, *, shows_all: bool) -> Iterator[None]:
    supplier = _Supplier(cache, good)
    counts = SharedCounts(node.counts)
    filesystem = supplier.filesystem = ObjectFileSystem(cache, 1, supplier, counts, shows_all=shows_all)
    fd = mount_fuse(node.objects, name="mica#selftest")
    session = FuseSession(fd, filesystem, more_flags=fuse_abi.FUSE_NO_OPEN_SUPPORT)
    device = linux.mounted_device(node.objects)
    filesystem.complete = session.complete
    session.start()
    try:
        yield
    finally:
        linux.umount2(node.objects, linux.MNT_DETACH)
        session.stop(device)
