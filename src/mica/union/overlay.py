"""One overlayfs mount: which layers, which options and why, and the two ways to hand them to the kernel.

It does not decide what a layer is or where it comes from: layers are directories that exist already and have the signs
of overlayfs (whiteouts as char 0:0, opaque directories as trusted.overlay.opaque=y). Called by `mica.run` and by the
drivers. Any thread; a mount appears in the mount namespace of the calling thread.

The new way (fsopen, fsconfig, fsmount; `lowerdir+` since Linux 6.8) gives every layer in a call of its own, so that
neither the number of layers nor a colon or comma in a path matters. The classic way (mount(2)) has one page for all
options and is used where the kernel does not know `lowerdir+`: layers that do not fit are named by the numbers of
descriptors, relative to the directory that has them, which makes room for as many as overlayfs can join.
"""

import contextlib
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mica import linux
from mica.errors import UserError
from mica.files import explained_os_error, owned_fd
from mica.union.plainpaths import pinned

LAYERS_MAX: Final = 500  # OVL_MAX_STACK in fs/overlayfs/params.h
_VALUE_MAX_BYTES: Final = 255  # of one fsconfig string
_PAGE_BYTES: Final = 4096
# Errors of a kernel that has no fsopen, or whose overlayfs does not know an option.
_NOT_TAKEN: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class OverlayOptions:
    """What differs between unions; the rest of the options is the same for all and explained in `_options`.

    data: data-only lower layers, targets of metacopy redirects, first one wins (Linux 6.5); they switch metacopy on.
    has_stubs: the layers hold files without content even so: their redirects lead into the lowest ordinary layer.
    volatile: the scratch layer is thrown away afterwards, so nothing of it needs to reach the disk (Linux 5.10).
    nodev: device nodes in the union do not open.
    one_by_one: whether the kernel takes layers one by one; None: it is asked, once in the life of this process.
    untrusted: a directory with mounted repositories, in which no link is followed on the way to a layer.
    """

    data: tuple[Path, ...] = ()
    has_stubs: bool = False
    volatile: bool = False
    nodev: bool = False
    one_by_one: bool | None = None
    untrusted: Path | None = None


@dataclass(frozen=True, slots=True)
class OverlayPlan:
    """A union that can be shown and mounted; `lower` is top first."""

    lower: tuple[Path, ...]
    data: tuple[Path, ...]
    upper: Path | None
    work: Path | None
    target: Path
    options: tuple[tuple[str, str], ...]
    attributes: int
    one_by_one: bool | None = None
    untrusted: Path | None = None

    def describe(self) -> str:
        """The same mount as a command line, for people; it may be longer than mount(8) accepts."""
        return f"mount -t overlay overlay -o {format_mount_data(self)} {self.target}"

    def mount(self) -> None:
        """Mount at the target, which exists. Raises UserError with the kernel's own words."""
        try:
            one_by_one = takes_one_by_one() if self.one_by_one is None else self.one_by_one
            with contextlib.ExitStack() as stack:
                plan = replace(self, lower=pinned(self.lower, self.untrusted, stack))
                (_mount_by_fsconfig if one_by_one else _mount_classic)(plan)
        except OSError as error:
            raise explained_os_error(error, f"mount a union of {len(self.lower)} layers") from error


@functools.cache
def takes_one_by_one() -> bool:
    """Whether this kernel's overlayfs takes layers one by one. Raises OSError if it has no overlayfs.

    Before Linux 6.5 overlayfs accepts any option here, and complains in the kernel's log when it is mounted.
    """
    return not _takes("there-is-no-such-option") and _takes("lowerdir+")


def _takes(key: str) -> bool:
    try:
        with owned_fd(linux.fsopen("overlay")) as context:
            linux.fsconfig_string(context, key, "/")
    except OSError as error:
        if error.errno in _NOT_TAKEN:
            return False
        raise
    return True


def plan_overlay(
    lower: Sequence[Path],
    upper: Path | None,
    work: Path | None,
    target: Path,
    options: OverlayOptions = OverlayOptions(),
) -> OverlayPlan:
    """Plan a union of layers, top first; without upper and work it is read-only.

    Raises UserError where overlayfs would only answer "invalid argument".
    """
    if not lower:
        raise UserError("A union needs at least one layer.")
    if (upper is None) != (work is None):
        raise UserError("A writable union needs both an upper and a work directory.")
    layers = tuple(lower)
    if upper is None and len(layers) == 1 and not options.data:
        # A single read-only layer is refused ("at least 2 lowerdir are needed while upperdir nonexistent"), and a
        # bind mount would show its whiteouts: the empty mount point serves as the second one.
        layers = (*layers, target)
    if len(layers) + len(options.data) > LAYERS_MAX:
        raise UserError(f"A union can have {LAYERS_MAX} layers, not {len(layers) + len(options.data)}.")
    # MOUNT_ATTR_NODEV and _RDONLY are equal to MS_NODEV and MS_RDONLY, so one value serves both ways of mounting.
    attributes = linux.MOUNT_ATTR_NODEV if options.nodev else 0
    if upper is None:
        attributes |= linux.MOUNT_ATTR_RDONLY
    return OverlayPlan(
        lower=layers,
        data=options.data,
        upper=upper,
        work=work,
        target=target,
        options=_options(options, writable=upper is not None),
        attributes=attributes,
        one_by_one=options.one_by_one,
        untrusted=options.untrusted,
    )


def _options(options: OverlayOptions, *, writable: bool) -> tuple[tuple[str, str], ...]:
    """Every option whose default a distribution or a module parameter can change is set, so that all nodes agree."""
    chosen = [
        # An index ties the upper to the file handles of the lower layers: the same scratch layer over the same image
        # mounted again elsewhere is ESTALE, and some lower file systems have no handles at all.
        ("index", "off"),
        # Unique inode numbers across layers cost the upper bits of st_ino: 32-bit programs without large file support
        # then get EOVERFLOW from stat(2). Off is what engines get on Debian, where it is the kernel's default.
        ("xino", "off"),
    ]
    if options.data or options.has_stubs:
        # Files of metadata images are stubs whose redirect names an object in a data layer; metacopy with a writable
        # layer needs redirect_dir=on (Linux 6.12: EINVAL without).
        chosen += [("metacopy", "on"), ("redirect_dir", "on" if writable else "follow")]
    else:
        # Ordinary layers come from outside. Off and nofollow: an attribute trusted.overlay.{metacopy,redirect} that
        # slipped into one points nowhere, and the upper gets whole files that can be copied out.
        chosen += [("metacopy", "off"), ("redirect_dir", "nofollow")]
    if options.volatile and writable:
        chosen.append(("volatile", ""))
    return tuple(chosen)


def format_mount_data(plan: OverlayPlan) -> str:
    """The option string of mount(2), with the escapes of fs/overlayfs/params.c."""
    lower = ":".join(map(_escape, plan.lower)) + "".join(f"::{_escape(path)}" for path in plan.data)
    parts = [f"lowerdir={lower}"]
    if plan.upper is not None and plan.work is not None:
        parts += [f"upperdir={_escape(plan.upper)}", f"workdir={_escape(plan.work)}"]
    parts += [f"{key}={value}" if value else key for key, value in plan.options]
    return ",".join(parts)


def _escape(path: Path) -> str:
    return os.fspath(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


@contextlib.contextmanager
def open_overlay(plan: OverlayPlan) -> Iterator[Path]:
    """Keep the union mounted for the block. A program that still has a file of it open then keeps only that file."""
    plan.mount()
    try:
        yield plan.target
    finally:
        linux.umount2(plan.target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)


def _mount_by_fsconfig(plan: OverlayPlan) -> None:
    with contextlib.ExitStack() as stack:
        context = linux.fsopen("overlay")
        stack.callback(os.close, context)
        linux.fsconfig_string(context, "source", "overlay")
        for key, value in plan.options:
            if value:
                linux.fsconfig_string(context, key, value)
            else:
                linux.fsconfig_flag(context, key)
        for key, path in _directories(plan):
            linux.fsconfig_string(context, key, _short(path, stack))
        linux.fsconfig_create(context)
        mount_fd = linux.fsmount(context, plan.attributes)
        stack.callback(os.close, mount_fd)
        linux.move_mount(mount_fd, plan.target)


def _directories(plan: OverlayPlan) -> Iterator[tuple[str, Path]]:
    yield from (("lowerdir+", path) for path in plan.lower)
    yield from (("datadir+", path) for path in plan.data)
    if plan.upper is not None and plan.work is not None:
        yield from (("upperdir", plan.upper), ("workdir", plan.work))


def _short(path: Path, stack: contextlib.ExitStack) -> str:
    """A path that passes unchanged: some kernels unescape upperdir and workdir here too; 255 bytes are the limit."""
    text = os.fspath(path)
    if "\\" not in text and len(os.fsencode(text)) <= _VALUE_MAX_BYTES:
        return text
    return _by_descriptor(path, stack)


def _by_descriptor(path: Path, stack: contextlib.ExitStack) -> str:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"


def _mount_classic(plan: OverlayPlan) -> None:
    data = format_mount_data(plan)
    if len(os.fsencode(data)) < _PAGE_BYTES:
        linux.mount("overlay", plan.target, "overlay", flags=plan.attributes, data=data)
    else:
        _mount_by_numbers(plan)


def _mount_by_numbers(plan: OverlayPlan) -> None:
    """Data-only layers keep their paths: `cache/overlays.py` finds the unions over a cache by them."""
    from concurrent.futures import ThreadPoolExecutor

    with contextlib.ExitStack() as stack:

        def number(path: Path) -> Path:
            fd = stack.enter_context(owned_fd(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
            return Path(str(fd))

        short = replace(
            plan,
            lower=tuple(map(number, plan.lower)),
            data=tuple(path.absolute() for path in plan.data),
            upper=plan.upper and number(plan.upper),
            work=plan.work and number(plan.work),
            target=plan.target.absolute(),
        )
        # The working directory belongs to the whole process, unless a thread unshares it.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_mount_among_descriptors, short).result()


def _mount_among_descriptors(plan: OverlayPlan) -> None:
    linux.unshare(linux.CLONE_FS)
    os.chdir("/proc/self/fd")
    linux.mount("overlay", plan.target, "overlay", flags=plan.attributes, data=format_mount_data(plan))
