"""Judges of metadata images from outside: erofs-utils and the kernel."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.disks import lies_in_memory
from tests.support.tools import LINUX, need

from mica import linux
from mica.dataplane.erofsmount import mount_image


def fsck(image: Path) -> str:
    """What fsck.erofs has to say against an image."""
    done = subprocess.run([need("fsck.erofs", "erofs-utils"), image], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode or "<E>" in done.stderr + done.stdout else ""


@contextlib.contextmanager
def mounted(image: Path, target: Path) -> Iterator[Path]:
    """The image, mounted from the file itself; before Linux 6.12, and where it is on no disk, by a loop device."""
    target.mkdir(exist_ok=True)
    mount_image(image, target, by_loop=LINUX < (6, 12) or lies_in_memory(image))
    try:
        yield target
    finally:
        linux.umount2(target, linux.MNT_DETACH)
