"""The image of demo, fidelity tests and benchmarks: Debian with R and Python in three layers, as an OCI image layout.

    base    debian bookworm, minbase
    r       r-base-core, python3, python3-numpy, without recommended packages: what installing them changed
    site    made here: deletes, replaces, makes directories opaque, and has one of everything that a layer can hold

`build()` needs root, mmdebstrap and the machine's own package sources, takes about a minute and keeps the result, which
is used until this package changes. Two processes may call it at once: the second waits.
"""

import fcntl
import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demo import trees
from demo.ocilayout import Entry, Layer, write_image, write_layer
from demo.packages import apt_options, package_sources

ROOT = Path(__file__).resolve().parent.parent
IMAGE_DIRECTORY = ROOT / "build" / "demo" / "image"
TAG = "r"
SUITE = "bookworm"
PACKAGES = ("r-base-core", "python3", "python3-numpy")
CONFIG = {
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEMO=mica"],
    "Entrypoint": [],
    "Cmd": ["R", "--version"],
    "WorkingDir": "/srv/demo",
    "Labels": {
        "org.opencontainers.image.title": "demo of mica",
        "org.opencontainers.image.licenses": "GPL-2.0-or-later",
    },
    "ExposedPorts": {"8787/tcp": {}},
    "Volumes": {"/srv/demo/data": {}},
    "StopSignal": "SIGTERM",
}
# What belongs to the build and not to the image, or differs from build to build without meaning.
_WITHOUT = (
    "etc/hostname",
    "etc/machine-id",
    "etc/resolv.conf",
    "var/cache/apt",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/log/alternatives.log",
    "var/log/apt",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
)
_TOLD_CHARACTERS = 4000
_DEFAULT_EPOCH_S = 1_735_689_600  # 2025-01-01; SOURCE_DATE_EPOCH overrides it


@dataclass(frozen=True, slots=True)
class DemoImage:
    """The built image. `image_bytes` counts file contents of all layers, as `docker images` does."""

    layout: Path
    tag: str
    entries: int
    image_bytes: int
    compressed_bytes: int
    build_s: float
    layers: tuple[Layer, ...]

    @property
    def source(self) -> str:
        """The image as an argument of `mica convert`."""
        return f"oci:{self.layout}:{self.tag}"


def build(layout: Path = IMAGE_DIRECTORY) -> DemoImage:
    """The image in this directory, built if it is not there or was built by other code.

    Raises subprocess.CalledProcessError, with the end of what mmdebstrap said on stderr; files beside have the rest."""
    layout.parent.mkdir(parents=True, exist_ok=True)
    facts_path = layout.with_name(f"{layout.name}.json")
    key = _key()
    with _locked(layout.with_name(f"{layout.name}.lock")):
        known = _read_facts(facts_path, layout, key)
        if known is not None:
            return known
        print("Making an image of Debian with R and Python, once: about a minute", flush=True)
        started = time.monotonic()
        shutil.rmtree(layout, ignore_errors=True)
        with _work_directory(layout.with_name(f"{layout.name}.work")) as work:
            layers = _write_layers(layout, work)
        write_image(layout, layers, tag=TAG, created=_created(), config=CONFIG)
        facts = {"key": key, "build_s": time.monotonic() - started, "layers": [asdict(layer) for layer in layers]}
        facts_path.write_text(json.dumps(facts, indent=1))
    return _from_facts(facts, layout)


def _key() -> str:
    code = [Path(__file__).with_name(name).read_bytes() for name in ("image.py", "ocilayout.py", "trees.py")]
    return hashlib.sha256(b"\0".join([*code, str(_epoch_s()).encode()])).hexdigest()


def _read_facts(path: Path, layout: Path, key: str) -> DemoImage | None:
    try:
        facts = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    if facts.get("key") != key or not (layout / "index.json").exists():
        return None
    return _from_facts(facts, layout)


def _from_facts(facts: dict[str, Any], layout: Path) -> DemoImage:
    layers = tuple(Layer(**layer) for layer in facts["layers"])
    return DemoImage(
        layout,
        TAG,
        entries=sum(layer.entries for layer in layers),
        image_bytes=sum(layer.content_bytes for layer in layers),
        compressed_bytes=sum(layer.compressed_bytes for layer in layers),
        build_s=facts["build_s"],
        layers=layers,
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _work_directory(path: Path) -> Iterator[Path]:
    _remove_tree(path)
    path.mkdir()
    try:
        yield path
    finally:
        _remove_tree(path)


def _remove_tree(path: Path) -> None:
    # Never into what may still be mounted below.
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True)


def _epoch_s() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH", _DEFAULT_EPOCH_S))


def _created() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_epoch_s()))


def _write_layers(layout: Path, work: Path) -> list[Layer]:
    # Two runs of mmdebstrap side by side rather than one with a pause: it alone knows how to keep apt and dpkg away
    # from the host, and the base layer is compressed while the packages of the other are being installed.
    latest_ns = _epoch_s() * 1_000_000_000
    with ThreadPoolExecutor(2) as pool:
        installing = pool.submit(_bootstrap, work, "r", PACKAGES)
        pool.submit(_bootstrap, work, "base", ()).result()
        base = trees.scan(work / "base", latest_ns=latest_ns, without=_WITHOUT)
        base_layer = write_layer(layout, trees.layer_of(base), created_by=f"mmdebstrap --variant=minbase {SUITE}")
        installing.result()
    full = trees.scan(work / "r", latest_ns=latest_ns, without=_WITHOUT)
    installed = write_layer(
        layout, trees.difference(base, full), created_by=f"apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    )
    site = write_layer(layout, site_entries(full, latest_ns), created_by="mica demo: a layer that changes and removes")
    return [base_layer, installed, site]


def _bootstrap(work: Path, name: str, packages: tuple[str, ...]) -> None:
    settings = work / f"{name}.settings"
    settings.mkdir()
    sources = settings / "debian.list"
    sources.write_text(package_sources(SUITE))
    options = settings / "apt.conf"
    options.write_text(apt_options())
    command = [
        "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory",
        f"--aptopt={options}", '--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io",
        *([f"--include={','.join(packages)}"] if packages else []),
        *([f"--customize-hook=chroot \"$1\" python3 -c '{_COMPILE}'"] if "python3" in packages else []),
        SUITE, str(work / name), *([str(sources)] if sources.stat().st_size else []),
    ]  # fmt: skip
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(_epoch_s())}
    log = work.with_name(f"image-{name}.log")
    with log.open("wb") as said:
        done = subprocess.run(
            command, check=False, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
    if done.returncode:
        sys.stderr.write(log.read_text("utf-8", "replace")[-_TOLD_CHARACTERS:])
        done.check_returncode()


# With SOURCE_DATE_EPOCH set, packages compile Python modules so that every import reads the source too and hashes it.
# No ordinary image has that: compile again, for the times that the sources get in the layer.
_COMPILE = """
import glob, importlib.util, os, py_compile
latest = int(os.environ["SOURCE_DATE_EPOCH"])
for compiled in glob.glob("/usr/lib/python3*/**/__pycache__/*.pyc", recursive=True):
    source = importlib.util.source_from_cache(compiled)
    if os.stat(source).st_mtime > latest:
        os.utime(source, (latest, latest))
    mode = py_compile.PycInvalidationMode.TIMESTAMP
    py_compile.compile(source, compiled, doraise=True, invalidation_mode=mode)
"""


# security.capability, revision 2: cap_net_raw, effective and permitted
_CAP_NET_RAW = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
_ALL = 0xFFFFFFFF
# system.posix_acl_access, version 2: u::rwx u:1000:r-x g::r-x m::r-x o::---
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, access, who)
    for tag, access, who in ((1, 7, _ALL), (2, 5, 1000), (4, 5, _ALL), (16, 5, _ALL), (32, 0, _ALL))
)


def site_entries(lower: trees.Tree, latest_ns: int) -> Iterator[Entry]:
    """The third layer, sorted; `lower` is the tree below it. Names what it removes, so that a change upstream shows."""
    changes = [*_removals(lower), *_replacements(latest_ns), *_additions(latest_ns)]
    entries = {entry.name: entry for entry in changes}
    for name in list(entries):
        parent = name
        while parent := os.path.dirname(parent):
            if parent not in entries:
                entries[parent] = lower[parent][0]
    for name in sorted(entries):
        yield entries[name]


def _removals(lower: trees.Tree) -> Iterator[Entry]:
    for path in (
        "etc/issue.net",  # a file of the base
        "usr/lib/R/SVN-REVISION",  # a file of the layer in between
        "usr/share/doc/python3-numpy",  # a directory of the layer in between
        "usr/share/doc/libc6",  # a directory of the base
    ):
        if path not in lower:
            raise LookupError(f"The demo image has no {path} to remove.")
        yield trees.whiteout(path)
    # A directory of both lower layers that shows nothing, and one that shows only what this layer puts there.
    for path in ("usr/share/lintian", "usr/share/common-licenses"):
        yield lower[path][0]
        yield trees.opaque(path)


def _replacements(latest_ns: int) -> Iterator[Entry]:
    time_ns = latest_ns + 123_456_789
    yield _file("etc/issue", b"demo of mica\n", mtime_ns=time_ns)  # file by file
    yield Entry("etc/debian_version", stat.S_IFLNK | 0o777, target="issue", mtime_ns=time_ns)  # file by link
    yield _file("usr/share/doc/libpam-modules", b"was a directory\n", mtime_ns=time_ns)  # directory by file
    yield Entry("etc/rmt", stat.S_IFDIR | 0o755, mtime_ns=time_ns)  # link by directory
    yield _file("etc/rmt/was-a-link", b"", mtime_ns=time_ns)
    yield Entry("usr/share/man", stat.S_IFDIR | 0o700, uid=6, gid=12, mtime_ns=time_ns)  # metadata only
    yield _file("usr/share/common-licenses/GPL-3", b"the only one left\n", mtime_ns=time_ns)
    yield _file("etc/R/Rprofile.site", b"# replaced by the site layer\n", mtime_ns=time_ns)


def _additions(latest_ns: int) -> Iterator[Entry]:
    yield Entry("srv/demo", stat.S_IFDIR | 0o2775, uid=1000, gid=1000, mtime_ns=latest_ns + 1)
    all_values = {"user.demo": b"yes", "user.binary": bytes(range(256))}
    specials: dict[str, dict[str, Any]] = {
        "capability": {"mode": stat.S_IFREG | 0o755, "xattrs": {"security.capability": _CAP_NET_RAW}},
        "acl": {"mode": stat.S_IFREG | 0o750, "xattrs": {"system.posix_acl_access": _ACL}},
        "user-xattrs": {"mode": stat.S_IFREG | 0o644, "xattrs": all_values},
        "setuid": {"content": b"#!/bin/sh\n", "mode": stat.S_IFREG | 0o6755, "uid": 33, "gid": 33},
        "sticky": {"mode": stat.S_IFDIR | 0o1777},
        "fifo": {"mode": stat.S_IFIFO | 0o600},
        "null": {"mode": stat.S_IFCHR | 0o666, "rdev": os.makedev(1, 3)},
        "block": {"mode": stat.S_IFBLK | 0o660, "rdev": os.makedev(259, 70_000), "gid": 6},
        "dangling": {"mode": stat.S_IFLNK | 0o777, "target": "../nowhere/" + "x" * 120},
        "old": {"content": b"1969", "mode": stat.S_IFREG | 0o644, "mtime_ns": -1_500_000_000},
        "zeros": {"content": bytes(3 << 20), "mode": stat.S_IFREG | 0o644},
        "many-ids": {"mode": stat.S_IFREG | 0o600, "uid": 4_000_000_000, "gid": 3_000_000},
    }
    for kind, entry in specials.items():
        yield Entry(f"srv/demo/{kind}", **{"mtime_ns": latest_ns + 987_654_321, **entry})
    for name in (
        "na\nme",
        "sp ace",
        "\u00e4\u00f6\u00fc-\u5c71",
        os.fsdecode(b"latin-\xe4"),
        "n" * 255,
        "d/" * 60 + "deep",
    ):
        yield _file(f"srv/demo/names/{name}", os.fsencode(name[:20]), mtime_ns=latest_ns + 5)
    yield from _directories(
        "srv/demo/names", *("srv/demo/names/" + "d/" * depth for depth in range(1, 61)), mtime_ns=latest_ns
    )
    yield Entry("srv/demo/empty", stat.S_IFDIR | 0o755, mtime_ns=latest_ns)
    yield _file("srv/demo/link-a", b"one inode\n", mtime_ns=latest_ns)
    yield Entry("srv/demo/link-b", stat.S_IFREG | 0o644, mtime_ns=latest_ns, hardlink="srv/demo/link-a")
    yield Entry("srv/demo/link-c", stat.S_IFREG | 0o644, mtime_ns=latest_ns, hardlink="srv/demo/link-a")


def _file(name: str, content: bytes, *, mtime_ns: int) -> Entry:
    return Entry(name, stat.S_IFREG | 0o644, content=content, mtime_ns=mtime_ns)


def _directories(*names: str, mtime_ns: int) -> Iterator[Entry]:
    for name in names:
        yield Entry(name.rstrip("/"), stat.S_IFDIR | 0o755, mtime_ns=mtime_ns)


if __name__ == "__main__":
    image = build()
    print(
        f"{image.source}: {image.entries} entries, {image.image_bytes / 1e6:.1f} MB, "
        f"{image.compressed_bytes / 1e6:.1f} MB compressed, built in {image.build_s:.1f} s"
    )
