"""From mounted layers and an image config to a finished container.

It decides nothing about images: the layers are mounted already, and stay so until it returns. Called by the command
line, in a process that does nothing else; for threads see `runc.py`. A run removes everything that it made when it
ends; the next run removes what a killed runner left (`scratch.py`).
"""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mica import linux
from mica.errors import UsageError, UserError
from mica.files import locked, mapped_os_errors, remove_tree
from mica.run.cgroups import has_usable_cgroups, read_hierarchies
from mica.run.request import RunOptions, RunRequest, Volume, check_hostname, check_name, plan_process
from mica.run.runc import Bundle, blocked_signals, run_bundle
from mica.run.scratch import RunDirectory, open_run_directory, sweep
from mica.run.spec import SpecOptions, format_spec
from mica.run.user import resolve_user
from mica.union.overlay import OverlayPlan, open_overlay, plan_overlay

_LOCAL_HOSTS: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def run_container(request: RunRequest, *, root: Path, runc: str = "runc") -> int:
    """Run to the end and return the exit code of the program, 128+n if a signal ended it.

    root: the runtime root, a directory of its own on a file system that can be an overlayfs upper.
    runc: a path, or a name to look up.
    Leaves the calling process in a private mount namespace (`enter_private_mounts`). Raises UsageError, UserError and,
    where the program did not start, StartError with Docker's exit code.
    """
    program = _find_runc(runc)
    _check(request.options)
    enter_private_mounts()
    sweep(root)
    with blocked_signals(), open_run_directory(root, request.options.name, request.record) as directory:
        return _run_in(directory, request, program)


def _run_in(directory: RunDirectory, request: RunRequest, runc: str) -> int:
    options = request.options
    hostname = options.hostname or (os.uname().nodename if options.network == "host" else directory.token[:12])
    process = plan_process(request.config, options, hostname=hostname)
    has_cgroup = has_usable_cgroups(read_hierarchies())
    with _open_union(directory, request, nodev=not has_cgroup) as rootfs:
        if request.opened is not None:
            request.opened(rootfs, process)
        spec = SpecOptions(
            process=process,
            user=resolve_user(rootfs, process.user),
            rootfs=rootfs,
            hostname=hostname,
            network=options.network,
            read_only=options.read_only,
            volumes=options.volumes,
            files=_write_files(directory.path / "etc", hostname, options),
            cgroup=f"/{directory.cgroup}" if has_cgroup else None,
            machine=os.uname().machine,
        )
        with mapped_os_errors("write the container's configuration"):
            (directory.path / "config.json").write_text(json.dumps(format_spec(spec)), encoding="ascii")
        bundle = Bundle(
            runc=runc,
            id=directory.cgroup,
            directory=directory.path,
            tty=options.tty,
            interactive=options.interactive,
            ignores_cgroups=not has_cgroup,
        )
        return run_bundle(bundle)


_private: set[int] = set()  # inode numbers of the mount namespaces that this process made


def enter_private_mounts() -> None:
    """Give the calling thread a mount namespace of its own, unless it is in one already.

    The host's mounts still appear in it, ours never on the host, and the kernel removes ours with the last process.
    Code that mounts layers for a run calls this first: mounts that were made outside can be undone only there.
    """
    with mapped_os_errors("make a private mount namespace"):
        if os.stat("/proc/thread-self/ns/mnt").st_ino in _private:
            return
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SLAVE)
        _private.add(os.stat("/proc/thread-self/ns/mnt").st_ino)


def _find_runc(runc: str) -> str:
    path = shutil.which(runc)
    if path is None:
        raise UserError(f"There is no {runc} on this host.", hint="Debian and Ubuntu: apt-get install runc")
    return os.path.abspath(path)


def _check(options: RunOptions) -> None:
    if os.geteuid() != 0:
        raise UserError("Only root can run containers.", hint="Try again with sudo.")
    if options.name is not None:
        check_name(options.name)
    if options.hostname is not None:
        check_hostname(options.hostname)
    if options.tty and not os.isatty(0):
        raise UsageError("-t needs a terminal, but standard input is not one.", hint="Leave out -t.")
    for volume in options.volumes:
        _check_volume(volume)


def _check_volume(volume: Volume) -> None:
    # Docker makes a directory, owned by root, so a typing error shows much later. Here it is an error at once.
    if not volume.source.exists():
        raise UserError(f"The volume's source {volume.source} does not exist.", hint="Make it first.")


@contextlib.contextmanager
def _open_union(directory: RunDirectory, request: RunRequest, *, nodev: bool) -> Iterator[Path]:
    rootfs = directory.path / "rootfs"
    with contextlib.ExitStack() as stack:
        keep = request.options.keep
        base = directory.path if keep is None else stack.enter_context(_open_kept(keep))
        with mapped_os_errors("make the scratch layer"):
            rootfs.mkdir()
            _make_scratch(base, request.layers.lower)
        layers = request.layers
        options = layers.options(volatile=keep is None, nodev=nodev)
        plan = plan_overlay(layers.lower, base / "upper", base / "work", rootfs, options)
        yield stack.enter_context(_open_explained(plan, base))


@contextlib.contextmanager
def _open_explained(plan: OverlayPlan, base: Path) -> Iterator[Path]:
    if linux.filesystem_type(base) == linux.OVERLAYFS_SUPER_MAGIC:
        raise UserError(
            f"The scratch layer cannot be in {base}, which is on overlayfs itself.", hint="Choose another root."
        )
    with open_overlay(plan) as rootfs:
        yield rootfs


@contextlib.contextmanager
def _open_kept(keep: Path) -> Iterator[Path]:
    with mapped_os_errors(f"use {keep} for the scratch layer"):
        keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(keep / ".lock", what=f"The scratch layer {keep}"):
        try:
            yield keep
        finally:
            if (keep / "work").is_dir():
                remove_tree(keep / "work")


def _make_scratch(base: Path, layers: tuple[Path, ...]) -> None:
    (base / "work").mkdir(mode=0o700, exist_ok=True)
    upper = base / "upper"
    if upper.is_dir():
        return
    upper.mkdir(mode=0o700)
    if layers:
        # The container's root directory has the owner and mode of the topmost one.
        status = layers[0].stat()
        os.chown(upper, status.st_uid, status.st_gid)
        upper.chmod(stat.S_IMODE(status.st_mode))


def _write_files(directory: Path, hostname: str, options: RunOptions) -> tuple[tuple[Path, str], ...]:
    """/etc/hosts and similar files: copies, so that a container edits only its own."""
    hosts = _read_host_file("/etc/hosts") if options.network == "host" else _LOCAL_HOSTS
    contents = {"hosts": hosts, "hostname": f"{hostname}\n", "resolv.conf": _read_host_file("/etc/resolv.conf")}
    with mapped_os_errors("write the container's /etc files"):
        directory.mkdir(mode=0o755)
        for name, text in contents.items():
            (directory / name).write_text(text, encoding="utf-8", errors="surrogateescape")
            (directory / name).chmod(0o644)
    return tuple((directory / name, f"/etc/{name}") for name in contents)


def _read_host_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""
