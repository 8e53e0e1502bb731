"""Traces on a node: fetched from beside an image's top layer, and recorded from what programs here ask for.

A trace is a hint. Errors in one go to the log, and images start without it.
"""

import threading
from pathlib import Path

from mica.dataplane.catalogpath import fetch_small_file
from mica.dataplane.messages import Kind, Question
from mica.fetch.client import RepositoryClient
from mica.files import mapped_os_errors
from mica.repo.catalog import NestedCatalog
from mica.texts import quoted
from mica.thin.descriptor import ThinLayer
from mica.thin.layout import trace_of_tree
from mica.thin.trace import PIECES_MAX, TRACE_MAX_BYTES, Piece, ProgramTrace, parse_traces


def fetch_traces(client: RepositoryClient, root: NestedCatalog, top: ThinLayer) -> list[ProgramTrace]:
    """The traces of images with this top layer, in the revision with that root catalog; none if none are published.

    Raises UserError or IntegrityError if a trace is wrong, and what fetching raises.
    """
    path = trace_of_tree(top.path.encode("utf-8"))
    data = None if path is None else fetch_small_file(client, root, path, TRACE_MAX_BYTES)
    return [] if path is None or data is None else parse_traces(data, f"{quoted(path)} of {client.fqrn}")


class Recorder:
    """Records the content that is asked for: each piece once, in the order of first questions. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: dict[Piece, None] = {}

    def asked(self, question: Question) -> None:
        """Record a question that a program waits for, up to the most pieces that a trace may have."""
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
    """The pieces that a recorder wrote; none if it ended before it wrote."""
    with mapped_os_errors(f"read {path}"):
        lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return list(map(Piece.parse, lines))
