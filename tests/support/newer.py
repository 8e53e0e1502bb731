"""Engines of a newer Debian, in a system of their own: nothing of it is installed on this machine."""

import contextlib
import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from demo.packages import apt_options, mirror
from tests.support.tools import need, need_root

from mica import linux

SUITE = "trixie"
_PACKAGES = ("mount", "docker.io", "containerd", "runc", "ca-certificates")
_BUILD = Path(__file__).resolve().parents[2] / "build"
# Enters the system with what the engine needs of this one. Mounts that are made outside come in: it is a slave.
_ENTER = """
set -e
root=$1 work=$2; shift 2
mount --bind "$root" "$root"
mount -t tmpfs none "$root/tmp"
for place in /proc /sys /dev /run/docker/plugins "$work"; do
  mkdir -p "$root$place"; mount --rbind "$place" "$root$place"
done
cd "$root"
pivot_root . .
umount --lazy .
cd /
exec "$@"
"""


def newer_system() -> Path:
    """Root directory of the system. Made once, which takes about a minute."""
    need_root()
    mmdebstrap = need("mmdebstrap", "mmdebstrap")
    target = _BUILD / f"system-{SUITE}"
    _BUILD.mkdir(exist_ok=True)
    with (_BUILD / f".{SUITE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        unfinished = target.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        options = _BUILD / f".{SUITE}.apt.conf"
        options.write_text(apt_options())
        source = mirror()
        subprocess.run(
            [mmdebstrap, "--quiet", "--mode=root", "--variant=apt", "--format=directory", f"--aptopt={options}",
             '--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io",
             f"--include={','.join(_PACKAGES)}", SUITE, str(unfinished),
             *([f"deb {source} {SUITE} main"] if source else [])],
            check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        unfinished.rename(target)
    return target


def entering(system: Path, work: Path) -> tuple[str, ...]:
    """What comes before a command that runs in the system, with a directory of ours at the same place there."""
    return ("unshare", "--mount", "--propagation=slave", "sh", "-c", _ENTER, "sh", str(system), str(work))


@contextlib.contextmanager
def propagating(work: Path) -> Iterator[None]:
    """Mounts that are made below the directory reach those who have a view of their own of it."""
    Path("/run/docker/plugins").mkdir(parents=True, exist_ok=True)
    linux.mount(work, work, flags=linux.MS_BIND)
    try:
        linux.mount("none", work, flags=linux.MS_SHARED)
        yield
    finally:
        linux.umount2(work, linux.MNT_DETACH)
