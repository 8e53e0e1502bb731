"""Traces on a node: fetched from beside an image's top layer, and recorded from what programs here ask for.

A trace is a hint. Whatever is wrong with one is told in the log, and images start without it.
"""

import os
import threading
from pathlib import Path

from mica.digest import Suffix
from mica.errors import IntegrityError
from mica.fetch.client import ObjectName, RepositoryClient
from mica.files import mapped_os_errors, owned_fd
from mica.node.catalogpath import locate
from mica.node.messages import Kind, Question
from mica.repo.catalog import NestedCatalog
from mica.repo.entry import Flag
from mica.tarstream import quoted
from mica.thin.descriptor import ThinLayer
from mica.thin.layout import trace_of_tree
from mica.thin.trace import PIECES_MAX, TRACE_MAX_BYTES, Piece, ProgramTrace, parse_traces


def fetch_traces(client: RepositoryClient, root: NestedCatalog, top: ThinLayer) -> list[ProgramTrace]:
    """Those of images with this top layer, in the revision with that root catalog; none if none are published.

    Raises UserError or IntegrityError if they are not right, and what fetching raises.
    """
    path = trace_of_tree(top.path.encode("utf-8"))
    found = None if path is None else locate(client, root, path)
    if path is None or found is None:
        return []
    what, entry = f"{quoted(path)} of {client.fqrn}", found.row.entry
    if not entry.is_regular or entry.flags & Flag.CHUNKED or entry.digest is None or entry.size > TRACE_MAX_BYTES:
        raise IntegrityError(f"{what} is no file of at most {TRACE_MAX_BYTES} bytes.")
    try:
        name = ObjectName(entry.digest, Suffix.FILE, entry.compression, entry.size)
    except ValueError as error:
        raise IntegrityError(f"{what} has an impossible entry: {error}.") from error
    with owned_fd(client.open_object(name)) as fd, mapped_os_errors(f"read {what}"):
        return parse_traces(os.pread(fd, TRACE_MAX_BYTES, 0), what)


class Recorder:
    """What is asked for, each piece once, in the order of the first time. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: dict[Piece, None] = {}

    def asked(self, question: Question) -> None:
        """Take note of what somebody waits for. More than a trace may have is not recorded."""
        if question.kind is Kind.PART:
            return
        name = question.name
        size = min(question.size, name.size - question.offset)
        piece = Piece(name, question.offset, size) if name.in_chunks else Piece(name)
        with self._lock:
            if len(self._pieces) < PIECES_MAX:
                self._pieces.setdefault(piece)

    def write(self, path: Path) -> None:
        """A line for each piece; `read_recorded` reads it."""
        with self._lock, mapped_os_errors(f"write {path}"):
            path.write_text("".join(f"{piece}\n" for piece in self._pieces), encoding="ascii")


def read_recorded(path: Path) -> list[Piece]:
    """What a recorder wrote; nothing if it did not come to that."""
    with mapped_os_errors(f"read {path}"):
        lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return list(map(Piece.parse, lines))
