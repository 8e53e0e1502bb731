"""Containers of `mica run` as a section of `mica status`: those that run, and what killed ones left."""

from collections.abc import Sequence
from pathlib import Path

from mica.cli.options import run_root
from mica.cli.statussections import Section, Thing
from mica.files import mapped_os_errors
from mica.run.runrecords import FoundRun, find_runs, roots_in_use
from mica.texts import one_line


def run_sections(state: Path, directory: Path | None) -> Sequence[Section]:
    """The containers of the state directory, and all others of `mica run` on this host."""
    runs = [] if directory is not None else _runs(run_root(state).absolute())
    return [Section("containers", [_thing(run) for run in runs], [_facts(run) for run in runs])]


def _runs(root: Path) -> list[FoundRun]:
    found = []
    for one in sorted({root, *roots_in_use()}):
        with mapped_os_errors(f"look for containers in {one}"):
            found += find_runs(one)
    return found


def _thing(run: FoundRun) -> Thing:
    record = run.record
    lines = {
        "state": _state(run),
        "process": record.pid if run.is_running else "",
        "layers": one_line(f"from the node {record.node}") if record.node else "served by itself" * run.is_running,
        "cache": one_line(record.cache),
        "directory": one_line(str(run.path)),
    }
    return Thing(f"Container {one_line(record.image or run.path.name)}", lines)


def _state(run: FoundRun) -> str:
    if not run.is_running:
        removal = f"mica doctor --state {run.path.parent.parent} removes it"
        return one_line(f"its process is gone, nothing is mounted: {removal}")
    return "running, mounted in a namespace of its own" if run.is_mounted else "starting or ending, not mounted"


def _facts(run: FoundRun) -> dict[str, object]:
    record = run.record
    return {
        "name": run.path.name,
        "image": record.image,
        "pid": record.pid if run.is_running else None,
        "node": record.node,
        "cache": record.cache,
        "directory": str(run.path),
        "state": ("running" if run.is_mounted else "starting") if run.is_running else "gone",
    }
