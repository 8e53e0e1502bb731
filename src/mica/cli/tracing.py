"""Recording what one program asks for when it starts (`mica run --trace`), and reading what was recorded."""

from collections.abc import Callable
from pathlib import Path

from mica.errors import UsageError
from mica.files import mapped_os_errors, replace_file
from mica.layers.stack import LayerStack, Method
from mica.repo.localname import LocalName
from mica.run.program import program_content
from mica.run.request import Process
from mica.thin.trace import TRACE_MAX_BYTES, Piece, ProgramTrace, format_traces, merge_traces, parse_traces


class ProgramWatch:
    """Records one run. `recorded` gets the content that was asked for during the run.

    Raises UsageError for a method without metadata images, because it does not know the content.
    """

    def __init__(self, method: Method) -> None:
        if method in {Method.REPOSITORY, Method.EXTERNAL}:
            raise UsageError(f"The method {method} cannot record a trace.", hint="Choose another with --method.")
        self.recorded: list[Piece] = []
        self._command: tuple[str, ...] = ()
        self._trigger: LocalName | None = None

    def watch(self, layers: LayerStack) -> Callable[[Path, Process], None]:
        """The function that a run calls when it has its root directory."""

        def opened(rootfs: Path, process: Process) -> None:
            self._command, self._trigger = process.args, program_content(rootfs, process, layers.lower)

        return opened

    def write(self, path: Path) -> None:
        """Write the trace after the run."""
        assert self._trigger is not None
        trace = ProgramTrace(self._command, self._trigger, tuple(self.recorded))
        with mapped_os_errors(f"write {path}"):
            replace_file(path, format_traces([trace]))


def refuse_used_cache(cache: Path) -> None:
    """Call it before an image is looked up, because that brings catalogs into the cache.

    Raises UsageError for a cache that is not empty, because cached content is not asked for.
    """
    if any((cache / "objects").glob("??/*")):
        raise UsageError(
            f"The cache {cache} is not empty, which a trace needs.", hint="Give an empty one with --cache."
        )


def read_traces(paths: list[Path]) -> list[ProgramTrace]:
    """The traces of all files; of several for one program the last. Raises UserError naming a file that is no trace."""
    traces = []
    for path in paths:
        with mapped_os_errors(f"read {path}"), path.open("rb") as file:
            traces += parse_traces(file.read(TRACE_MAX_BYTES + 1), str(path))
    return merge_traces(traces)
