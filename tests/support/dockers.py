"""Real Docker Engines for tests: each in a directory of its own, without networks, gone at the end of its block."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.cli import mica
from tests.support.newer import entering
from tests.support.nodes import Published, Reachable, RunningNode, publish_tars, running_node, served
from tests.support.tars import by_tarfile
from tests.support.tools import need, need_fuse
from tests.unit.oci.samples import docker_archive_files, make_config, make_sample, make_tar

from mica import linux

_START_S = 40
APPLETS = (
    "cat", "chmod", "chown", "cp", "dd", "echo", "false", "find", "ln", "ls", "mkdir", "mkfifo", "mknod", "mv", "rm",
    "sh", "sha256sum", "sleep", "stat", "sync", "tar", "touch", "true", "wc",
)  # fmt: skip


@contextlib.contextmanager
def short_directory(parent: Path | None = None) -> Iterator[Path]:
    """Engines make sockets deep below their directories, and a socket's path has 108 bytes. `parent`: below /tmp
    unless given."""
    path = Path(tempfile.mkdtemp(prefix="mica-", dir=parent))
    try:
        yield path
    finally:
        # An engine that cannot start leaves its data directory mounted on itself.
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            target = line.split(" ")[4]
            if target.startswith(f"{path}/"):
                linux.umount2(target, linux.MNT_DETACH)
        shutil.rmtree(path)


class Failure(NamedTuple):
    """How a command of the client failed."""

    code: int
    stderr: str

    @property
    def sentence(self) -> str:
        """What the daemon said."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, self.stderr
        return lines[0].partition("Error response from daemon: ")[2] or lines[0]


class Docker:
    """One dockerd and its client. `before` is a command that becomes the daemon, as nsenter does; `system` the root
    directory of another system whose daemon it is."""

    def __init__(
        self, work: Path, driver: str, *options: str, before: Sequence[str] = (), system: Path | None = None
    ) -> None:
        daemon = Path(need("dockerd", "docker.io"))
        self._daemon = str(daemon) if system is None else "/usr/sbin/dockerd"
        self._system = system
        self._client = str(daemon.parent.parent / "bin" / "docker")
        self.work = work
        self.log = work / "dockerd.log"
        self.data = work / "data"
        self._before = before if system is None else entering(system, work)
        self._options = ("--storage-driver", driver, *options)
        path = f"{daemon.parent}:{daemon.parent.parent / 'bin'}:{os.environ['PATH']}"
        self._environment = {
            "PATH": path,
            "HOME": str(work),
            "DOCKER_HOST": f"unix://{work}/sock",
            "DOCKER_CONFIG": str(work / "client"),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._containerd: subprocess.Popen[bytes] | None = None

    def _start_containerd(self) -> None:
        """Containers and their shims outlive an engine that is killed only if containerd does."""
        place = self.work / "containerd"
        place.mkdir(exist_ok=True)
        (place / "config.toml").write_text(
            f"version = 2\nroot = '{place}/root'\nstate = '{place}/state'\n"
            f"disabled_plugins = ['io.containerd.grpc.v1.cri']\n[grpc]\naddress = '{place}/sock'\n"
        )
        command = [need("containerd", "containerd"), "--config", str(place / "config.toml")]
        with (place / "log").open("ab") as log:
            self._containerd = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while not (place / "sock").exists():
            assert self._containerd.poll() is None, (place / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the daemon."""
        command = [
            *self._before,
            self._daemon, "--experimental", "--data-root", str(self.data), "--exec-root", str(self.work / "exec"),
            "--pidfile", str(self.work / "pid"), "--host", f"unix://{self.work}/sock", "--bridge=none",
            "--iptables=false", "--ip6tables=false", "--ip-forward=false", *self._options,
        ]  # fmt: skip
        if self._containerd is not None:
            command += ["--containerd", str(self.work / "containerd" / "sock")]
        need("runc", "runc")
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment, start_new_session=True)

    def start(self) -> None:
        # That of another system starts its own, which shares its view of mounts.
        if self._containerd is None and self._system is None:
            self._start_containerd()
        self._process = process = self.launch()
        deadline = time.monotonic() + _START_S
        while not self.answers():
            assert process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.05)

    def answers(self) -> bool:
        done = subprocess.run([self._client, "version"], env=self._environment, capture_output=True, check=False)
        return done.returncode == 0

    def end(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)
        self._process.wait(30)

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.end(number)
        self.start()

    def stop(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is not None:
            self.start()
        containers = self("ps", "-aq").split()
        if containers:
            self("rm", "-f", *containers)
        self.end(signal.SIGTERM)
        if self._containerd is not None:
            self._containerd.terminate()
            self._containerd.wait(30)

    def refused(self) -> str:
        """What it writes when it cannot start."""
        with self.launch() as process:
            try:
                assert process.wait(90) != 0
            finally:
                process.terminate()
        return self.log.read_text()

    def raw(self, *arguments: str | Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._client, *map(str, arguments)], input=stdin, env={**self._environment, **environment},
            capture_output=True, check=False, timeout=300,
        )  # fmt: skip

    def binary(self, *arguments: str | Path, stdin: bytes = b"", **environment: str) -> bytes:
        """Standard output of a command that has to succeed."""
        done = self.raw(*arguments, stdin=stdin, **environment)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode("utf-8", "replace")[-2000:]
        return done.stdout

    def __call__(self, *arguments: str | Path, stdin: bytes = b"", **environment: str) -> str:
        return self.binary(*arguments, stdin=stdin, **environment).decode().strip()

    def run(self, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        return self("run", "--rm", "--network", "none", *options, image, *command)

    def first_line(self, *arguments: str) -> tuple[float, str]:
        """Of the output of a command that has to succeed, and when it came (time.monotonic)."""
        command = [self._client, *arguments]
        with subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            came = time.monotonic()
            process.stdout.read()
        assert process.returncode == 0, arguments
        return came, first.decode().strip()

    def fails(self, *arguments: str | Path, stdin: bytes = b"", **environment: str) -> Failure:
        done = self.raw(*arguments, stdin=stdin, **environment)
        assert done.returncode != 0, done.stdout
        return Failure(done.returncode, done.stderr.decode())

    def inspect(self, name: str, template: str) -> str:
        return self("inspect", "-f", template, name)

    def tree(self, image: str) -> dict[str, tuple[Any, ...]]:
        """What a container of the image has in it before it runs, without what the engine itself puts there."""
        container = self("create", "--network", "none", image, "true")
        try:
            return tar_tree(self.binary("export", container))
        finally:
            self("rm", container)


@contextlib.contextmanager
def running_docker(
    work: Path, driver: str, *options: str, before: Sequence[str] = (), system: Path | None = None
) -> Iterator[Docker]:
    work.mkdir(exist_ok=True)
    docker = Docker(work, driver, *options, before=before, system=system)
    docker.start()
    try:
        yield docker
    finally:
        docker.stop()


_ENGINES_OWN = ("dev/", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab", ".dockerenv", "proc/", "sys/")


def tar_tree(archive: bytes) -> dict[str, tuple[Any, ...]]:
    """Everything that an archive says of each path but the times of directories."""
    tree: dict[str, tuple[Any, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.name.startswith(_ENGINES_OWN) or f"{member.name}/" in _ENGINES_OWN:
                continue
            file = tar.extractfile(member) if member.isreg() else None
            attributes = tuple(sorted((k, v) for k, v in member.pax_headers.items() if k.startswith("SCHILY.xattr")))
            tree[member.name] = (
                member.type, member.mode & 0o7777, member.uid, member.gid, member.linkname,
                0 if member.isdir() else int(member.mtime), member.devmajor, member.devminor, attributes,
                file.read() if file else b"",
            )  # fmt: skip
    return tree


# Images


def base_layers() -> list[bytes]:
    """Two layers of a small system with a shell; the second takes away and replaces parts of the first."""
    busybox = Path(need("busybox", "busybox-static")).read_bytes()

    def lower(tar: tarfile.TarFile) -> None:
        add_member(tar, ".", tarfile.DIRTYPE, mode=0o751)
        for name in ("bin", "etc", "tmp", "data", "data/inner", "opaque", "moved", "moved/deep"):
            add_member(tar, name, tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        add_member(tar, "bin/busybox", data=busybox, mode=0o755)
        for applet in APPLETS:
            add_member(tar, f"bin/{applet}", tarfile.SYMTYPE, link="busybox")
        add_member(tar, "etc/passwd", data=b"root:x:0:0::/:/bin/sh\n")
        for number in range(20):
            add_member(tar, f"data/{number}", data=b"data %d\n" % number * 100, uid=number, gid=2 * number)
        add_member(tar, "data/inner/file", data=b"inner\n")
        add_member(tar, "data/hard", tarfile.LNKTYPE, link="data/0")
        for name in ("gone", "opaque/hidden", "moved/a", "moved/deep/b"):
            add_member(tar, name, data=name.encode())
        add_member(tar, "bin/suid", data=b"#!/bin/sh\n", mode=0o4755)

    def upper(tar: tarfile.TarFile) -> None:
        add_member(tar, ".", tarfile.DIRTYPE, mode=0o751)
        add_member(tar, ".wh.gone")
        add_member(tar, "opaque", tarfile.DIRTYPE, mode=0o755)
        add_member(tar, "opaque/.wh..wh..opq")
        add_member(tar, "opaque/shown", data=b"shown\n")
        add_member(tar, "data/1", data=b"replaced\n")

    return [by_tarfile(lower), by_tarfile(upper)]


def add_member(
    tar: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, *, data: bytes = b"", mode: int = 0o644,
    link: str = "", uid: int = 0, gid: int = 0,
) -> None:  # fmt: skip
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.uid, member.gid = kind, link, uid, gid
    member.mode = 0o777 if kind == tarfile.SYMTYPE else mode
    member.mtime, member.size = 1_600_000_000, len(data)
    tar.addfile(member, io.BytesIO(data))


def thin_archive(descriptor: bytes | dict[str, Any], *, name: str = "thin.json", more: dict[str, bytes] | None = None,
                 tag: str = "thin/test:1") -> bytes:  # fmt: skip
    """A docker archive of an image of one layer whose file is a descriptor, for `docker load`."""
    data = descriptor if isinstance(descriptor, bytes) else json.dumps(descriptor).encode()

    def fill(tar: tarfile.TarFile) -> None:
        for path, content in {name: data, **(more or {})}.items():
            add_member(tar, path, data=content)

    return image_archive([by_tarfile(fill)], tag)


def image_archive(layers: list[bytes], tag: str) -> bytes:
    sample = make_sample(layers, kind="", config=make_config(layers))
    return make_tar(docker_archive_files(sample, tags=[tag]))


# Everything together


class Host(NamedTuple):
    """A node with its graph driver, what it serves, and an engine on it."""

    docker: Docker
    node: RunningNode
    image: Published
    plugin: Path


@contextlib.contextmanager
def running_host(work: Path, *options: str, system: Path | None = None, is_external: bool = False) -> Iterator[Host]:
    """`is_external`: layers come from a mount of the repository and not from the node."""
    (work / "image").mkdir()
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(served(publish_tars(work / "image", base_layers())))
        if is_external:
            shown = stack.enter_context(_shown(image, work))
            options = (*options, "--storage-opt", "mica.method=external", "--storage-opt", f"mica.external={shown}")
        node, docker = stack.enter_context(driven_engine(work, image, *options, system=system))
        yield Host(docker, node, image, plugin_of(work))


@contextlib.contextmanager
def _shown(image: Published, work: Path) -> Iterator[Path]:
    """A directory in which a client shows the repository."""
    target = work / "cvmfs" / image.publication.fqrn
    target.mkdir(parents=True)
    key = image.publication.key
    command = ["mount", image.publication.fqrn, target, "--url", image.url, "--key", key, "--cache", work / "client"]
    done = mica(work / "client-state", *command)
    assert done.code == 0, done.stderr
    try:
        yield target.parent
    finally:
        linux.umount2(target, linux.MNT_DETACH)


@contextlib.contextmanager
def driven_engine(
    work: Path, image: Reachable, *options: str, before: Sequence[str] = (), system: Path | None = None
) -> Iterator[tuple[RunningNode, Docker]]:
    """A node that knows the image's repository, and an engine on its driver."""
    need_fuse()
    plugin = plugin_of(work)
    settings = f"[drivers.docker]\nsocket = '{plugin}'\n"
    with (
        running_node(work, image, settings, before=before) as node,
        running_docker(work / "d", plugin.stem, *options, before=before, system=system) as docker,
    ):
        yield node, docker


def plugin_of(work: Path) -> Path:
    """Where the engine finds the driver: it looks into one directory of the machine only."""
    return Path("/run/docker/plugins") / f"{work.name}.sock"


def tar_bytes(directory: Path) -> bytes:
    """A directory as an archive that depends on nothing but what is in it."""
    command = ["tar", "--sort=name", "--numeric-owner", "-C", str(directory), "-c", "."]
    return subprocess.run(command, capture_output=True, check=True).stdout
