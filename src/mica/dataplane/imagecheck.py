"""Reading foreign metadata images through before the kernel is given them, in processes beside the service.

A check takes twelve microseconds for each inode. The service's interpreter could answer no request meanwhile, and a
first start waits for the images of all layers. So the service has checkers, one for each processor, forked before it
has threads:

    service ── the image's descriptor (SCM_RIGHTS), what to call it → checker
            ← "ok", or what is wrong ─────────────────────────────────

They end with the service, however that ends. If one dies, the others go on. Any thread.
"""

import contextlib
import gc
import os
import queue
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mica.errors import IntegrityError
from mica.metaimage.reader import read_image
from mica.serverprocess import Parent, Serve, open_server_process

Check = Callable[[BinaryIO, str], None]
"""Raises IntegrityError naming the second argument if the first is not a metadata image from end to end."""

_CHECKERS_MAX = 4
_MESSAGE_BYTES = 16 << 10
_OK = b"ok"
_WRONG = b"!"


def check_image(file: BinaryIO, what: str) -> None:
    """Check an image in this process."""
    deque(read_image(file, what), maxlen=0)


@contextlib.contextmanager
def open_checkers(count: int = min(os.cpu_count() or 1, _CHECKERS_MAX)) -> Iterator[Check]:
    """A check that other processes do, `count` at a time. To be opened by a process without threads."""
    idle: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(ours)
            with theirs:
                stack.enter_context(open_server_process(_checker(theirs), "checker of images", wait=False))
            idle.put(ours)

        def check(file: BinaryIO, what: str) -> None:
            line = idle.get()
            try:
                answer = _ask(line, file, what)
            finally:
                idle.put(line)
            if answer.startswith(_WRONG):
                raise IntegrityError(answer.removeprefix(_WRONG).decode("utf-8"))
            if answer != _OK:
                check_image(file, what)

        yield check


def _ask(line: socket.socket, file: BinaryIO, what: str) -> bytes:
    """The checker's answer; empty if the checker has died."""
    try:
        socket.send_fds(line, [what.encode("utf-8")], [file.fileno()])
        return line.recv(_MESSAGE_BYTES)
    except ConnectionError:
        return b""


def _checker(line: socket.socket) -> Serve:
    def serve(parent: Parent) -> None:
        parent.ready()
        gc.disable()  # reading makes no reference cycles
        with contextlib.suppress(ConnectionError):
            while parent.wait(line) and _answer(line):
                pass

    return serve


def _answer(line: socket.socket) -> bool:
    """Check one image; False if the service has ended."""
    what, descriptors, _, _ = socket.recv_fds(line, _MESSAGE_BYTES, 1)
    if not descriptors:
        return False
    with open(descriptors[0], "rb") as file:
        try:
            check_image(file, what.decode("utf-8"))
            answer = _OK
        except IntegrityError as error:
            answer = _WRONG + str(error).encode("utf-8")
    line.send(answer[:_MESSAGE_BYTES])
    return True
