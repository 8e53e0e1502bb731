"""Two machines that share nothing but what they are lent: network namespaces with a name and a link of their own.

with own_host(1) as host:
url = host.lend(port)          a port of this test's loopback, at the other end of the link
subprocess.run([*host.enter, …])
"""

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import need, need_root

_NETWORK = "10.77.{}.{}"
_BLOCK = 1 << 16


@dataclass
class Host:
    """`address` is that of the test as the host sees it; other hosts reach it too."""

    pid: int
    address: str
    stack: contextlib.ExitStack

    @property
    def enter(self) -> tuple[str, ...]:
        """A command goes behind it."""
        return ("nsenter", f"--target={self.pid}", "--net", "--uts")

    def lend(self, port: int) -> str:
        """HOST:PORT where the host reaches a port of 127.0.0.1, and nothing else of it."""
        return f"{self.address}:{self.stack.enter_context(_relayed(self.address, port))}"


@contextlib.contextmanager
def own_host(number: int) -> Iterator[Host]:
    need_root()
    ip = need("ip", "iproute2")
    ours, theirs = _NETWORK.format(number, 1), _NETWORK.format(number, 2)
    script = f"hostname mica-test-{number} && echo ready && exec sleep 3600"
    command = ["unshare", "--net", "--uts", "--kill-child", "--fork", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        link = f"mica-test-{number}"
        host = Host(pid, ours, stack)
        for line in (
            f"link add {link} type veth peer name eth0 netns {pid}",
            f"address add {ours}/30 dev {link}",
            f"link set {link} up",
        ):
            subprocess.run([ip, *line.split()], check=True)
        stack.callback(subprocess.run, [ip, "link", "delete", link], check=False, stderr=subprocess.DEVNULL)
        for line in (
            f"address add {theirs}/30 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add default via {ours}",
        ):
            subprocess.run([*host.enter, ip, *line.split()], check=True)
        yield host


@contextlib.contextmanager
def _relayed(address: str, port: int) -> Iterator[int]:
    with socket.create_server((address, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:  # closed
                    return
                threading.Thread(target=_relay, args=(client, port), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
    thread.join()


def _relay(client: socket.socket, port: int) -> None:
    with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(_BLOCK):
            target.sendall(block)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
