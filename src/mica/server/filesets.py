"""Files that are planned first and then written, never over others unasked.

    plan = plan_files({path: content, …})
    plan.different          files that are there with other content: kept, unless they are to be replaced
    write_files(plan, replace_different=False)

One thread.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mica.files import mapped_os_errors, replace_file

_MODE = 0o644


class FilePlan(NamedTuple):
    contents: Mapping[Path, bytes]
    new: tuple[Path, ...]
    same: tuple[Path, ...]
    different: tuple[Path, ...]


def plan_files(contents: Mapping[Path, bytes]) -> FilePlan:
    """Looks at what is there. Raises UserError for a place that cannot be looked at."""
    found: dict[str, list[Path]] = {"new": [], "same": [], "different": []}
    for path, content in contents.items():
        with mapped_os_errors(f"look at {path}"):
            if not path.exists():
                found["new"].append(path)
            else:
                found["same" if path.read_bytes() == content else "different"].append(path)
    return FilePlan(contents, *(tuple(found[kind]) for kind in ("new", "same", "different")))


def write_files(plan: FilePlan, *, replace_different: bool) -> tuple[Path, ...]:
    """Returns what was written. A file that is replaced stays beside the new one, with `.old` behind its name."""
    written = [*plan.new, *(plan.different if replace_different else ())]
    for path in written:
        with mapped_os_errors(f"write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path in plan.different:
                replace_file(path.with_name(f"{path.name}.old"), path.read_bytes(), mode=_MODE)
            replace_file(path, plan.contents[path], mode=_MODE)
    return tuple(written)
