"""The managed form of the graph driver: a root file system with Python and mica in it, and the plugin's configuration.

    DIRECTORY/config.json       docker/docs, "Plugin Config Version 1"
    DIRECTORY/rootfs/           Debian's Python by mmdebstrap; mica and its dependencies, copied from this installation

`docker plugin create NAME DIRECTORY` makes a plugin of it. Two builds from the same packages are the same bytes: all
files have one time, and nothing in them says when or where they were made. The unions are made below the propagated
mount, so that the engine sees them; the node's own mounts stay inside.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mica.errors import UserError
from mica.files import mapped_os_errors, remove_tree

SOCKET = "mica.sock"
STATE = "/var/lib/mica"
_SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
_DIRECTORIES = ("dev", "etc/mica", "proc", "root", "run/docker/plugins", "sys", "tmp", STATE[1:])
# A node runs without these: documentation, translations, build and test parts, package managers.
_WITHOUT = (
    "etc/*", "usr/share/*", "var/*", "usr/sbin/*", "usr/libexec/*", "usr/lib/apt", "usr/lib/dpkg", "usr/lib/systemd",
    "usr/lib/tmpfiles.d", "usr/lib/sysusers.d", "usr/lib/udev", "usr/lib/init", "usr/lib/lsb", "usr/lib/mime",
    "usr/lib/valgrind", "usr/lib/ssl", "usr/lib/*/gconv", "usr/lib/*/perl*", "usr/lib/*/engines-3", "usr/lib/*/audit",
    "usr/lib/*/ossl-modules", "usr/lib/python3*/test", "usr/lib/python3*/idlelib", "usr/lib/python3*/tkinter",
    "usr/lib/python3*/lib2to3", "usr/lib/python3*/ensurepip", "usr/lib/python3*/pydoc_data",
    "usr/lib/python3*/distutils", "usr/lib/python3*/config-*", "usr/lib/python3*/turtledemo",
)  # fmt: skip
_KEPT_PROGRAMS = ("python3", "python3.*")
# For colouring programs, for reading YAML, for making bindings.
_UNUSED_PACKAGES = {"Pygments", "PyYAML", "pycparser"}
_UNUSED_FILES = ("zstandard/_cffi*.so",)
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")


def build_plugin(directory: Path, *, mirrors: Sequence[str] = (), epoch_s: int = 0) -> int:
    """Make the directory, which does not exist yet, and return how many bytes of files are in it. `mirrors` are
    mmdebstrap's; without any it takes the machine's.

    Raises UserError if it cannot be made, with mmdebstrap's own words on standard error.
    """
    suite = _SUITES.get(sys.version_info[:2])
    if suite is None or shutil.which("mmdebstrap") is None:
        raise UserError(
            "A plugin is built by mmdebstrap, with the Python of a Debian release that has this one.",
            hint=f"Install mmdebstrap and run mica by Python {' or '.join('.'.join(map(str, v)) for v in _SUITES)}.",
        )
    with mapped_os_errors(f"build a plugin in {directory}"):
        directory.mkdir(parents=True)
        root = directory / "rootfs"
        try:
            _bootstrap(root, suite, mirrors, epoch_s)
            _slim(root)
            for name in _DIRECTORIES:
                (root / name).mkdir(parents=True, exist_ok=True)
            (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/false\n", encoding="ascii")
            _copy_packages(root / "usr/lib/python3/dist-packages")
            (directory / "config.json").write_text(json.dumps(plugin_config(), indent=1) + "\n", encoding="ascii")
            return _settle(directory, epoch_s)
        except BaseException:
            remove_tree(directory)
            raise


def plugin_config() -> dict[str, Any]:
    """`config.json`: sockets, mounts and rights that the engine gives."""
    command = ["/usr/bin/python3", "-B", "-m", "mica", "node", "--state", STATE, "--docker-socket"]
    return {
        "description": "mica: run container images without downloading them",
        "documentation": "",
        "entrypoint": [*command, f"/run/docker/plugins/{SOCKET}"],
        "workdir": "/",
        "interface": {"types": ["docker.graphdriver/1.0"], "socket": SOCKET},
        # Repositories are fetched over the host's network.
        "network": {"type": "host"},
        # /proc tells whether an interrupted caller is about to end (`fuse/callers.py`). The kernel gives no pids of
        # another namespace, and then every signal of a Go program would be an I/O error.
        "pidhost": True,
        "linux": {
            # To mount; to write attributes of the kind trusted.*; to open what a container made unreadable; to make
            # nodes of loop devices, without which older kernels cannot mount metadata images. Which numbers these
            # devices have is not known before, so all are allowed.
            "capabilities": ["CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_MKNOD"],
            "allowAllDevices": True,
            "devices": [{"name": "fuse", "description": "the object filesystem", "path": "/dev/fuse"}],
        },
        "mounts": [
            {
                "name": "configuration",
                "description": "config.toml and the keys of repositories",
                "source": "/etc/mica",
                "destination": "/etc/mica",
                "type": "bind",
                "options": ["rbind", "ro"],
                "settable": ["source"],
            }
        ],
        "propagatedMount": STATE,
        "env": [],
        "args": {"name": "", "description": "", "settable": None, "value": []},
    }


def _bootstrap(root: Path, suite: str, mirrors: Sequence[str], epoch_s: int) -> None:
    command = [
        "mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--format=directory", "--include=python3",
        "--dpkgopt=force-unsafe-io", suite, os.fspath(root), *mirrors,
    ]  # fmt: skip
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch_s)}
    done = subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if done.returncode:
        raise UserError(f"mmdebstrap ended with exit code {done.returncode}.")


def _slim(root: Path) -> None:
    keep = {path for pattern in _KEPT_PROGRAMS for path in (root / "usr/bin").glob(pattern)}
    doomed = [path for pattern in _WITHOUT for path in root.glob(pattern)]
    doomed += [path for path in (root / "usr/bin").iterdir() if path not in keep]
    doomed += [*(root / "dev").iterdir()]
    for path in doomed:
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def _copy_packages(target: Path) -> None:
    """Copy this program and all that it requires, without files that only its installer needs."""
    target.mkdir(parents=True, exist_ok=True)
    for name in sorted(_required("mica")):
        if name.lower() in {unused.lower() for unused in _UNUSED_PACKAGES}:
            continue
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts and file.suffix != ".pth":
                source = Path(str(file.locate()))
                if source.is_file():
                    (target / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target / file)
    for path in (path for pattern in _UNUSED_FILES for path in target.glob(pattern)):
        path.unlink()
    # Ourselves from where we run, which may be a checkout and no installed copy.
    own = Path(__file__).resolve().parents[2]
    shutil.copytree(own, target / own.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for record in target.glob("*.dist-info/*"):
        # METADATA has the versions; the other files name this machine or its installer.
        if record.is_file() and record.name not in {"METADATA", "entry_points.txt"}:
            record.unlink()


def _required(name: str) -> set[str]:
    found: set[str] = set()
    pending = [name]
    while pending:
        try:
            distribution = importlib.metadata.distribution(pending.pop())
        except importlib.metadata.PackageNotFoundError:
            continue  # for other systems, or an extra
        key = distribution.metadata["Name"]
        if key not in found:
            found.add(key)
            pending += _names(distribution.requires or [])
    return found


def _names(requirements: list[str]) -> Iterator[str]:
    for text in requirements:
        match = _REQUIREMENT.match(text)
        if match is not None and "extra" not in text.partition(";")[2]:
            yield match[0]


def _settle(directory: Path, epoch_s: int) -> int:
    """Give everything one time and one owner; returns the bytes of its files."""
    total = 0
    for path in (directory, *directory.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
        os.utime(path, (epoch_s, epoch_s), follow_symlinks=False)
        if path.is_file() and not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            total += path.stat().st_size
    return total
