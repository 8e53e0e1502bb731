"""Recording what one program asks for when it starts (`mica run --trace`), and reading what was recorded."""

from collections.abc import Callable
from pathlib import Path

from mica.errors import UsageError
from mica.files import mapped_os_errors, replace_file
from mica.node.stack import LayerStack, Method
from mica.repo.localname import LocalName
from mica.run.program import program_content
from mica.run.request import Process
from mica.thin.trace import TRACE_MAX_BYTES, Piece, ProgramTrace, format_traces, merge_traces, parse_traces


class ProgramWatch:
    """One run. `recorded` gets what was asked for while it was served.

    Raises UsageError for a cache that is not empty, since nobody asks for what is here, and for a method without
    metadata images, which knows of no content.
    """

    def __init__(self, cache: Path, method: Method) -> None:
        if method in {Method.REPOSITORY, Method.EXTERNAL}:
            raise UsageError(f"With the method {method} nobody knows what a program asks for.")
        if any((cache / "objects").glob("??/*")):
            raise UsageError(
                f"The cache {cache} is not empty: a trace has what it lacks.", hint="Give another: --cache"
            )
        self.recorded: list[Piece] = []
        self._command: tuple[str, ...] = ()
        self._trigger: LocalName | None = None

    def watch(self, layers: LayerStack) -> Callable[[Path, Process], None]:
        """What a run calls when it has its root directory."""

        def opened(rootfs: Path, process: Process) -> None:
            self._command, self._trigger = process.args, program_content(rootfs, process, layers.lower)

        return opened

    def write(self, path: Path) -> None:
        """Once the run is over."""
        assert self._trigger is not None
        trace = ProgramTrace(self._command, self._trigger, tuple(self.recorded))
        with mapped_os_errors(f"write {path}"):
            replace_file(path, format_traces([trace]))


def read_traces(paths: list[Path]) -> list[ProgramTrace]:
    """Those of all files; of one program the last. Raises UserError naming a file that is no trace."""
    traces = []
    for path in paths:
        with mapped_os_errors(f"read {path}"), path.open("rb") as file:
            traces += parse_traces(file.read(TRACE_MAX_BYTES + 1), str(path))
    return merge_traces(traces)
