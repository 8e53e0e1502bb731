"""Uploads that go on while the publisher works: many at a time, with a bound on what they hold in memory.

    uploads.add(key, size, send)      returns soon; waits while too much is on its way
    uploads.wait(key)                 returns when nothing of that key is on its way, arrived or not
    uploads.flush()                   returns when everything added before has arrived, else raises the first failure

An upload that failed is kept and tried once more by each `flush`: so of several threads that share the uploads, none
believes that all of its own have arrived because another one was told of the failure. What is kept counts as on its
way. Any thread.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

_FAILURES_MAX: Final = 64
"""So many kept failures are reason enough to stop whoever adds more."""

_UPLOADS_MAX: Final = 512
"""Small ones are bounded by their number."""

Send = Callable[[], None]
"""Carries an upload out, in a thread of the uploads. Raises if it cannot."""


@dataclass(slots=True, eq=False)
class _Upload:
    key: str
    send: Send
    size_bytes: int
    is_running: bool = False
    failure: BaseException | None = None


class Uploads:
    """Close it: what has not begun by then is dropped."""

    def __init__(self, *, threads: int, in_flight_bytes: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="uploads")
        self._in_flight_max = in_flight_bytes
        self._changed = threading.Condition()
        self._uploads: dict[str, _Upload] = {}
        self._in_flight_bytes = 0
        self._failures = 0

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, key: str, size_bytes: int, send: Send) -> None:
        """Nothing is done if an upload of that key is on its way. Raises what earlier ones failed by, if they are too
        many or too large to be kept."""
        while True:
            with self._changed:
                if key in self._uploads:
                    return
                if self._has_room(size_bytes):
                    upload = self._uploads[key] = _Upload(key, send, size_bytes)
                    self._in_flight_bytes += size_bytes
                    self._start(upload)
                    return
                if self._failures < len(self._uploads):
                    self._changed.wait()
                    continue
            self.flush()

    def wait(self, key: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: key not in self._uploads or not self._uploads[key].is_running)

    def flush(self) -> None:
        with self._changed:
            uploads = list(self._uploads.values())
            for upload in uploads:
                if not upload.is_running:
                    self._failures -= 1
                    self._start(upload)
            for upload in uploads:
                self._changed.wait_for(lambda upload=upload: not upload.is_running)  # type: ignore[misc]
                if upload.failure is not None:
                    raise upload.failure

    def _has_room(self, size_bytes: int) -> bool:
        if self._failures >= _FAILURES_MAX:
            return False
        if len(self._uploads) >= _UPLOADS_MAX:
            return False
        return not self._uploads or self._in_flight_bytes + size_bytes <= self._in_flight_max

    def _start(self, upload: _Upload) -> None:
        upload.is_running, upload.failure = True, None
        self._pool.submit(self._run, upload)

    def _run(self, upload: _Upload) -> None:
        failure: BaseException | None = None
        try:
            upload.send()
        except BaseException as error:
            failure = error
        with self._changed:
            upload.is_running, upload.failure = False, failure
            if failure is None:
                del self._uploads[upload.key]
                self._in_flight_bytes -= upload.size_bytes
            else:
                self._failures += 1
            self._changed.notify_all()
