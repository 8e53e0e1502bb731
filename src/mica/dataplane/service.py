"""The node's service: fetches what the object filesystem asks for, and serves programs that mount.

One socket for both kinds of caller. The object filesystem asks in datagrams of `messages.py`. Programs ask in JSON, one
object a datagram with the operation's name under "op"; they hold what they are given until they hang up. An answer with
"error" is one of `mica.errors.format_error`. A thread for each connection, and a pool for downloads.
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
from typing import Any

from mica.cache.cache import Cache
from mica.cache.partfiles import PartFile, open_part
from mica.dataplane.messages import ANY_REPOSITORY, Kind, Question, Result, format_result, parse_question
from mica.dataplane.sockets import MESSAGE_MAX_BYTES, listening
from mica.digest import Suffix
from mica.errors import MicaError, NotFoundError, UserError, format_error, in_one_line
from mica.fetch.client import RepositoryClient
from mica.logs import logger
from mica.repo.localname import LocalName
from mica.repo.objectname import ObjectName
from mica.serverprocess import Parent

_log = logger(__name__)
_DOWNLOADS_AT_ONCE = 512
_OPEN_PARTS = 64
_IDLE_S = 10.0
Operation = Callable[[Mapping[str, Any], contextlib.ExitStack], dict[str, Any]]
"""Takes a request and a stack that is closed when the caller hangs up; returns the answer. Raises MicaError."""


class Supply:
    """Brings content into the cache, from the repositories in the order of their numbers. Any thread."""

    def __init__(self, cache: Cache, clients: Sequence[RepositoryClient]) -> None:
        self._cache = cache
        self._clients = clients
        self._lock = threading.Lock()
        self._parts: OrderedDict[LocalName, tuple[PartFile, float]] = OrderedDict()
        self.is_ahead = threading.Event()
        """Set while a trace is followed: then the next reads are known, and no chunks are fetched on a guess."""
        self.last_asked = 0.0
        """When a program that waits last asked (time.monotonic)."""
        for used in (cache, *(client.cache for client in clients)):
            used.quota.release = self._close_unused

    def answer(self, question: Question) -> Result:
        """Never raises an Exception: an error goes to the log once and becomes an errno."""
        number = question.repository
        clients = self._clients if number == ANY_REPOSITORY else self._clients[number : number + 1]
        failure: MicaError = NotFoundError(f"There is no repository number {number} for {question.name}.")
        for client in clients:
            try:
                self._supply(client, question)
            except MicaError as error:
                failure = error
            except Exception:
                _log.exception("%s of %s", question.name, client.fqrn)
            else:
                return Result(question.ticket, 0)
        _log.error("%s", in_one_line(failure))
        return Result(question.ticket, errno.EIO)

    def _supply(self, client: RepositoryClient, question: Question) -> None:
        name = question.name
        if question.ticket and question.kind is not Kind.RANGE:
            client.counter.add(files_opened=1)
        if not name.in_chunks:
            client.fetch_object(ObjectName(name.digest, Suffix.FILE, name.compression, name.size))
            return
        if question.kind is Kind.PART and os.path.exists(self._cache.path(name)):
            return
        part = self._part(name)
        if question.kind is Kind.RANGE:
            self._fetch_range(client, part, question)

    def _fetch_range(self, client: RepositoryClient, part: PartFile, question: Question) -> None:
        # Questions without a ticket come from completion and prefetching, which ask for all that they need.
        if question.ticket and not self.is_ahead.is_set():
            client.fetch_range(part, question.offset, question.size)
        else:
            client.fetch_chunks(part, part.missing(question.offset, question.size))

    def _part(self, name: LocalName) -> PartFile:
        with self._lock:
            part = self._current(name)
        if part is None:
            # Not under the lock: it may have to wait for room, which other threads make by closing their files.
            part = open_part(self._cache, name)
        with self._lock:
            part = self._current(name) or part
            self._parts[name] = part, time.monotonic()
            self._parts.move_to_end(name)
            if len(self._parts) > _OPEN_PARTS:
                self._parts.popitem(last=False)
            return part

    def _current(self, name: LocalName) -> PartFile | None:
        part, _ = self._parts.get(name, (None, 0.0))
        return part if part is not None and part.is_current else None

    def close_idle(self, idle_s: float) -> None:
        """Let go of large files that were not asked for in this time: an open file cannot leave the cache."""
        limit = time.monotonic() - idle_s
        with self._lock:
            while self._parts and next(iter(self._parts.values()))[1] < limit:
                self._parts.popitem(last=False)

    def _close_unused(self) -> None:
        """As `close_idle`, for all files without a download under way. Called to make room."""
        with self._lock:
            self._parts.clear()


class Service:
    """`operations` are those that programs may ask for, by name. `asked` gets each question of the object filesystem
    before it is answered."""

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

    def serve(self, path: Path, parent: Parent) -> None:
        """Take connections until the parent wants the end."""
        pool = ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="fetch")
        try:
            with listening(path) as server:
                parent.ready()
                threading.Thread(target=self._keep_house, name="housekeeping", daemon=True).start()
                while parent.wait(server):
                    connection, _ = server.accept()
                    threading.Thread(target=self._talk, args=(connection, pool), name="talk", daemon=True).start()
        finally:
            self._is_ending = True
            # Downloads under way may last until their servers' time-out: do not wait for them.
            pool.shutdown(wait=False, cancel_futures=True)

    def _keep_house(self) -> None:
        while not self._is_ending:
            time.sleep(_IDLE_S / 2)
            self._supply.close_idle(_IDLE_S)

    def _talk(self, connection: socket.socket, pool: ThreadPoolExecutor) -> None:
        try:
            with connection, contextlib.ExitStack() as held, contextlib.suppress(ConnectionError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_MAX_BYTES)
                while message := connection.recv(MESSAGE_MAX_BYTES):
                    if message[:1] == b"{":
                        connection.send(json.dumps(self._operate(message, held)).encode("ascii"))
                    else:
                        self._begin(message, connection, pool)
        except Exception:
            _log.exception("a connection ends")

    def _begin(self, message: bytes, connection: socket.socket, pool: ThreadPoolExecutor) -> None:
        question = parse_question(message)
        try:
            pool.submit(self._answer, question, connection)
        except RuntimeError:
            if not self._is_ending:  # otherwise our successor is asked again
                raise

    def _answer(self, question: Question, connection: socket.socket) -> None:
        self._supply.last_asked = time.monotonic()
        self._asked(question)
        result = self._supply.answer(question)
        # Questions that fail because we end go to our successor again.
        if result.errno and self._is_ending:
            return
        # The session that asked may have ended; its successor asks again.
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
            return format_error(error)
        except Exception as error:
            _log.exception("a request failed")
            return format_error(UserError(f"The node failed: {type(error).__name__}.", hint="See its log."))
