"""Real nodes for tests: a published image, a server that can misbehave, `mica node` as processes, unions made of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.support.cli import mica
from tests.support.waiting import PATIENCE_S
from tests.support.webserver import WebServer, serving
from tests.unit.oci.samples import make_sample, make_tar, write_layout

from mica.daemon.client import open_node
from mica.layers.stack import LayerStack, Method
from mica.union.overlay import open_overlay, plan_overlay

FQRN = "node.example.org"


@dataclass(frozen=True)
class Publication:
    """An image of our own in a repository. `descriptor` is the document of its thin image, `thin` where that is."""

    state: Path
    www: Path
    thin: str
    descriptor: dict[str, Any]
    fqrn: str = FQRN

    @property
    def key(self) -> Path:
        return self.state / "repositories" / self.fqrn / "keys" / f"{self.fqrn}.pub"


@dataclass(frozen=True)
class Published:
    """A publication that is served."""

    publication: Publication
    server: WebServer

    @property
    def url(self) -> str:
        return f"{self.server.url}/{self.publication.fqrn}"


def publish(work: Path, *layers: Mapping[str, bytes | str]) -> Publication:
    """Layers of files, bottom first, converted."""
    return publish_tars(work, [make_tar(files) for files in layers])


def publish_tars(work: Path, layers: list[bytes]) -> Publication:
    """Layers, bottom first, converted."""
    state, storage = work / "state", work / "www" / FQRN
    layout = write_layout(work / "image", make_sample(layers))
    for command in (
        ("repo", "create", FQRN, "--storage", storage),
        ("convert", f"oci:{layout}", FQRN, "--tag", "test/image:1", "-o", f"oci:{work / 'thin'}:1"),
    ):
        done = mica(state, *command)
        assert done.code == 0, done.stderr
    shown = mica(state, "inspect", f"oci:{work / 'thin'}:1", "--json")
    layer_documents = [{"digest": layer["digest"], "url": layer["url"]} for layer in json.loads(shown.stdout)["layers"]]
    descriptor = {"version": "1.0", "origin": "test/image:1", "layers": layer_documents}
    return Publication(state, work / "www", f"oci:{work / 'thin'}:1", descriptor)


class Reachable(Protocol):
    """A publication and where it is to be had, as a node sees it."""

    @property
    def publication(self) -> Publication: ...

    @property
    def url(self) -> str: ...


@contextlib.contextmanager
def served(publication: Publication) -> Iterator[Published]:
    with serving(publication.www) as server:
        yield Published(publication, server)


class RunningNode:
    """`mica node` in a directory; started and killed at will, gone at the end of `running_node`."""

    def __init__(self, work: Path, image: Reachable, settings: str, before: Sequence[str] = ()) -> None:
        self.directory = work / "node"
        self.cache = work / "cache"
        self.log = work / "node.log"
        self._image = image
        self._before = before
        self._config = work / "node.toml"
        self._config.write_text(
            f"[node]\ncache = '{self.cache}'\n{settings}\n"
            f"[repositories.'{image.publication.fqrn}']\nurls = ['{image.url}']\nkeys = ['{image.publication.key}']\n"
        )
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.launch()
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("ready"), self.log.read_text()

    def launch(self) -> None:
        """Without waiting for it."""
        options = ["--config", str(self._config), "--node", str(self.directory)]
        command = [*self._before, sys.executable, "-m", "mica", "node", *options]
        environment = {**os.environ, "MICA_STATE": str(self.cache.parent / "none")}
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
            )

    @property
    def method(self) -> Method:
        with open_node(self.directory / "service.sock") as node:
            return Method(node.ask("status")["method"])

    @property
    def supervisor(self) -> int:
        assert self._process is not None
        return self._process.pid

    def servers(self) -> dict[str, int]:
        """Process ids of the service, the session, and the driver if there is one. Waits for one that is starting."""
        with open_node(self.directory / "service.sock") as node:
            service = int(node.ask("status")["pid"])
        deadline = time.monotonic() + PATIENCE_S
        while True:
            children = children_of(self.supervisor) - {service}
            drivers = {pid for pid in children if _listens_to_streams(pid)}
            # Looked at once more at the end: what ended meanwhile is not one of them.
            found = (children - drivers - set(filter(_is_holder, children))) & children_of(self.supervisor)
            if len(found) == 1:
                (session,) = found
                return {"service": service, "session": session, **dict(zip(["driver"], drivers, strict=False))}
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def holder(self) -> int | None:
        """The process id; it has our environment, whoever of the nodes here started it."""
        ours = f"MICA_STATE={self.cache.parent / 'none'}\0".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is_holder(int(entry.name)):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if ours in (entry / "environ").read_bytes():
                        return int(entry.name)
        return None

    def wait(self) -> int:
        """Until it ends by itself; its exit code."""
        assert self._process is not None
        code = self._process.wait(60)
        self.reap()
        return code

    def kill(self) -> None:
        """All of it but the holder, as a crash would."""
        servers = self.servers()
        os.kill(self.supervisor, signal.SIGKILL)
        for pid in servers.values():
            with contextlib.suppress(ProcessLookupError):  # it has ended with the supervisor
                os.kill(pid, signal.SIGKILL)
        self.reap()

    def terminate(self) -> None:
        os.kill(self.supervisor, signal.SIGTERM)
        self.reap()

    def stop(self) -> None:
        if self.directory.exists():
            done = mica(self.cache.parent / "none", "node", "--stop", "--node", str(self.directory))
            assert done.code == 0, done.stderr
        if self._process is not None:
            self.reap()

    def reap(self) -> None:
        """Wait for the end of a node that was told to end, or killed."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
        self._process = None

    @contextlib.contextmanager
    def union(self, *, writable: bool = False, label: str = "union") -> Iterator[Path]:
        """The image's layers as one directory."""
        base = self.directory.parent / label
        for name in ("upper", "work", "merged"):
            (base / name).mkdir(parents=True)
        with open_node(self.directory / "service.sock") as node:
            stack = LayerStack.from_json(node.ask("layers", descriptor=self._image.publication.descriptor))
            scratch = (base / "upper", base / "work") if writable else (None, None)
            plan = plan_overlay(stack.lower, *scratch, base / "merged", stack.options())
            with open_overlay(plan) as merged:
                yield merged


@contextlib.contextmanager
def running_node(
    work: Path, image: Reachable, settings: str = "", *, before: Sequence[str] = ()
) -> Iterator[RunningNode]:
    """`settings` are lines of the section `[node]`; `before` is a command that becomes the node's, as nsenter does."""
    node = RunningNode(work, image, settings, before)
    node.start()
    try:
        yield node
    except BaseException as error:
        error.add_note(f"The node's log ends with:\n{node.log.read_text()[-8000:]}")
        raise
    finally:
        node.stop()


def _is_holder(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b"holder.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _listens_to_streams(pid: int) -> bool:
    """What an engine's driver does, and no other server of a node (proc_net(5): flags, type)."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    inodes = {f"socket:[{fields[6]}]" for fields in lines if (fields[3], fields[4]) == ("00010000", "0001")}
    found = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.add(os.readlink(entry))
    return bool(inodes & found)


def children_of(parent: int) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(of) == parent and state != "Z":
                    found.add(int(entry.name))
    return found
