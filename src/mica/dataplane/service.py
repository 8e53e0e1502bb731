"""The node's service: fetches what the object filesystem asks for, and does what programs that mount ask of it.

One socket for both kinds of caller: the object filesystem asks in datagrams of `messages.py`; programs ask in JSON, one
object a datagram with the operation's name under "op", and what they are given they hold until they hang up. An answer
with "error" has "hint" and "exit_code" too. A thread for each connection, and a pool for downloads.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Never

from mica.digest import Suffix
from mica.errors import MicaError, NotFoundError, UserError
from mica.fetch.cache import Cache
from mica.fetch.client import ObjectName, RepositoryClient
from mica.fetch.parts import PartFile, open_part
from mica.logs import logger
from mica.node.messages import ANY_REPOSITORY, Kind, Question, Result, format_result, parse_question
from mica.node.sockets import MESSAGE_MAX_BYTES, listening
from mica.repo.localname import LocalName

_log = logger(__name__)
_DOWNLOADS_AT_ONCE = 512
_OPEN_PARTS = 64
Operation = Callable[[Mapping[str, Any], contextlib.ExitStack], dict[str, Any]]
"""Takes a request and what is closed when the caller hangs up; returns the answer. Raises MicaError."""


class Supply:
    """Content into the cache, from the repositories in the order of their numbers. Any thread."""

    def __init__(self, cache: Cache, clients: Sequence[RepositoryClient]) -> None:
        self._cache = cache
        self._clients = clients
        self._lock = threading.Lock()
        self._parts: OrderedDict[LocalName, PartFile] = OrderedDict()
        self.is_ahead = threading.Event()
        """Set while a trace is followed: what will be read next is known, and nobody guesses."""
        self.last_asked = 0.0
        """When somebody who waits last asked (time.monotonic)."""

    def answer(self, question: Question) -> Result:
        """Never raises an Exception: what goes wrong is told once in the log and becomes an errno."""
        number = question.repository
        clients = self._clients if number == ANY_REPOSITORY else self._clients[number : number + 1]
        failure: MicaError = NotFoundError(f"There is no repository number {number} for {question.name}.")
        for client in clients:
            try:
                return Result(question.ticket, 0, self._supply(client, question))
            except MicaError as error:
                failure = error
            except Exception:
                _log.exception("%s of %s", question.name, client.fqrn)
        _log.error("%s", failure)
        return Result(question.ticket, errno.EIO)

    def _supply(self, client: RepositoryClient, question: Question) -> int:
        name = question.name
        if question.ticket and question.kind is not Kind.RANGE:
            client.counter.add(files_opened=1)
        if not name.in_chunks:
            os.close(client.open_object(ObjectName(name.digest, Suffix.FILE, name.compression, name.size)))
            return 0
        if question.kind is Kind.PART and os.path.exists(self._cache.path(name)):
            return 0
        part = self._part(name)
        if question.kind is Kind.RANGE:
            self._fetch_range(client, part, question)
        return part.inode

    def _fetch_range(self, client: RepositoryClient, part: PartFile, question: Question) -> None:
        # Completion and prefetching, with no ticket, know what they need.
        if question.ticket and not self.is_ahead.is_set():
            client.fetch_range(part, question.offset, question.size)
        else:
            client.fetch_chunks(part, part.missing(question.offset, question.size))

    def _part(self, name: LocalName) -> PartFile:
        with self._lock:
            part = self._parts.get(name)
            if part is None:
                part = self._parts[name] = open_part(self._cache, name)
            self._parts.move_to_end(name)
            if len(self._parts) > _OPEN_PARTS:
                self._parts.popitem(last=False)
            return part


class Service:
    """`operations` are what programs may ask for, by name. `asked` hears of what the object filesystem asks for before
    it is supplied."""

    def __init__(
        self,
        supply: Supply,
        operations: Mapping[str, Operation],
        asked: Callable[[Question], None] = lambda _question: None,
    ) -> None:
        self._supply = supply
        self._operations = operations
        self._asked = asked
        self._is_ending = False

    def serve(self, path: Path, ready: Callable[[], None]) -> Never:
        """Take connections until an exception, such as that of a signal's handler, ends it."""
        pool = ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="fetch")
        try:
            with listening(path) as server:
                ready()
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=self._talk, args=(connection, pool), name="talk", daemon=True).start()
        finally:
            self._is_ending = True
            # Downloads under way may take until their servers' time-out: nobody waits for them any more.
            pool.shutdown(wait=False, cancel_futures=True)

    def _talk(self, connection: socket.socket, pool: ThreadPoolExecutor) -> None:
        try:
            with connection, contextlib.ExitStack() as held, contextlib.suppress(ConnectionError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_MAX_BYTES)
                while message := connection.recv(MESSAGE_MAX_BYTES):
                    if message[:1] == b"{":
                        connection.send(json.dumps(self._operate(message, held)).encode("ascii"))
                    else:
                        pool.submit(self._answer, parse_question(message), connection)
        except Exception:
            _log.exception("a connection ends")

    def _answer(self, question: Question, connection: socket.socket) -> None:
        self._supply.last_asked = time.monotonic()
        self._asked(question)
        result = self._supply.answer(question)
        # What fails because we end is asked again of our successor.
        if result.errno and self._is_ending:
            return
        # Whoever asked may be gone; its successor asks again.
        with contextlib.suppress(OSError):
            connection.send(format_result(result))

    def _operate(self, message: bytes, held: contextlib.ExitStack) -> dict[str, Any]:
        try:
            request = json.loads(message)
            operation = self._operations.get(request.get("op"))
            if operation is None:
                raise UserError(f"The node knows no operation {str(request.get('op'))[:40]!r}.")
            return operation(request, held)
        except MicaError as error:
            return {"error": str(error), "hint": error.hint, "exit_code": error.exit_code}
        except Exception as error:
            _log.exception("a request failed")
            return {"error": f"The node failed: {type(error).__name__}.", "hint": "Its log says more.", "exit_code": 1}
