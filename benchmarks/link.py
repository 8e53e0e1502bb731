"""A slow network on this machine: two namespaces, a veth pair with a rate, and a far end that answers late.

    our namespace          client ──────── veth, token bucket in both directions ──────── server
                           commands                                            web server, delay

Everything hangs on two `cat` processes, which end when we do, however that happens: then the kernel removes namespaces
and interfaces. The kernel here has no netem, so distance is made by a proxy of our own (`benchmarks/delay.py`).

The bucket holds what the rate gives in a tenth of a millisecond and at least two full frames: with the usual tens of
kilobytes, every short answer would come at the speed of memory. Rates are of Ethernet frames, as `received_bytes` is:
100 Mbit/s carry 11.9 MB/s of content, measured, 1 Gbit/s 107 MB/s.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CLIENT, _SERVER = "10.99.0.1", "10.99.0.2"
_BURST_S = 1e-4
_TWO_FRAMES = 3200
_QUEUE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """`rtt_ms` is added to every connection's handshake and to every exchange."""

    mbit: int
    rtt_ms: int = 0

    @property
    def burst_bytes(self) -> int:
        return max(_TWO_FRAMES, int(self.mbit * 125_000 * _BURST_S))


FAST_LAN = Shape(1000)
LAN = Shape(100)
FAR = Shape(100, rtt_ms=40)


class Link:
    """Commands for either end. Addresses are the same for every link: each has its own two namespaces."""

    server_address = _SERVER

    def __init__(self, client_pid: int, server_pid: int) -> None:
        self._pids = {"client": client_pid, "server": server_pid}

    def at(self, end: str, *command: str | Path) -> list[str]:
        """A command that runs at the `client` or the `server`; nothing but the network differs."""
        return ["nsenter", f"--net=/proc/{self._pids[end]}/ns/net", *map(str, command)]

    def received_bytes(self) -> int:
        """Bytes of all frames that the client has received so far."""
        text = subprocess.run(
            self.at("client", "cat", "/proc/net/dev"), check=True, capture_output=True, text=True
        ).stdout
        return next(int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == ["wire:"])


@contextlib.contextmanager
def open_link(shape: Shape) -> Iterator[Link]:
    """A network of this shape; needs root. Whoever runs commands in it ends them before the block ends."""
    with _namespace() as client, _namespace() as server:
        link = Link(client, server)
        _run("ip", "link", "add", "name", "wire", "netns", str(client), "type", "veth",
             "peer", "name", "wire", "netns", str(server))  # fmt: skip
        for end, address in (("client", _CLIENT), ("server", _SERVER)):
            _run(*link.at(end, "ip", "address", "add", f"{address}/24", "dev", "wire"))
            for interface in ("lo", "wire"):
                _run(*link.at(end, "ip", "link", "set", interface, "up"))
            _run(*link.at(end, "tc", "qdisc", "add", "dev", "wire", "root", "tbf", "rate", f"{shape.mbit}mbit",
                          "burst", str(shape.burst_bytes), "limit", str(_QUEUE_BYTES)))  # fmt: skip
        yield link


@contextlib.contextmanager
def served_over(shape: Shape, command: list[str | Path], port: int, **environment: str) -> Iterator[tuple[Link, str]]:
    """A web server at the far end of a link, listening on `port` there; gives the URL of its root."""
    with open_link(shape) as link, running(link.at("server", *command), **environment):
        wait_for(link, port)
        if not shape.rtt_ms:
            yield link, f"http://{_SERVER}:{port}"
            return
        far = port + 1
        delay = [sys.executable, "-m", "benchmarks.delay", f"{far}", f"{_SERVER}:{port}", f"{shape.rtt_ms}"]
        with running(link.at("server", *delay)):
            wait_for(link, far)
            yield link, f"http://{_SERVER}:{far}"


@contextlib.contextmanager
def running(command: list[str], **environment: str) -> Iterator[None]:
    """A program in the background for the block."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment}) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)


def wait_for(link: Link, port: int) -> None:
    """Until something at the server's end listens on a port; TimeoutError if nothing does."""
    listening = re.compile(rf":{port:04X} [0-9A-F]+:0000 0A ")  # /proc/net/tcp: local and remote address, LISTEN
    for _ in range(1000):
        done = subprocess.run(link.at("server", "cat", "/proc/net/tcp"), check=True, capture_output=True, text=True)
        if listening.search(done.stdout):
            return
        time.sleep(0.01)
    raise TimeoutError(f"nothing listens on port {port}")


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """Process id of a `cat` in a network namespace of its own; it ends with its standard input."""
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        while os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            time.sleep(0.005)
        yield process.pid


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
