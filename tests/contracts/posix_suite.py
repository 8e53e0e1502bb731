"""The POSIX table (posix_table.txt) done to a mounted image: what every row gave, to be compared with another mount.

One pass does all rows: first what is left to prepare in the kits, then every row as root and as a user, in a process
for each of the two, then one look at all kits. What a row gave is a `Seen`: the results of its steps, and of every
file in its kit what programs can see, where times are told by when they were set rather than by the clock. There is no
opinion of ours in a comparison; the table's outcomes only make sure that rows do what they were written for.
"""

import errno
import itertools
import json
import os
import re
import stat
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Never

from tests.contracts.posix_kits import GROUPS, USER, Names, Place, names_in, plant, prepare
from tests.contracts.posix_operations import OPERATIONS, expand, status_of, summary, xattrs_of
from tests.support.mountpaths import Deviation
from tests.support.tools import LINUX

from mica import linux
from mica.files import owned_fd

KITS: Final = "kits"
_TABLE: Final = Path(__file__).with_name("posix_table.txt")
_READ_ONLY: Final = "read-only"
_IN_LOWER_LAYERS: Final = frozenset({Place.LOWER, Place.MERGED, Place.OPAQUE, Place.COPIED})
_CHANGING_NAMES: Final = frozenset(
    {"link", "linkfollow", "mkdir", "mknod", "open", "rename", "rename2", "rmdir", "symlink", "tmplink", "unlink"}
)
_MOUNT_ATTR_ATIME: Final = 0x70
_IDENTITY: Final = -1
_CLOCK_TICK_S: Final = 0.02
"""Longer than a tick, by which times of files may lag behind the clock."""


class Step(NamedTuple):
    """An operation with its arguments, and the error it is to end with (`ok` for none)."""

    words: tuple[str, ...]
    outcome: str


class Row(NamedTuple):
    """A line of the table; `who` is root, user or read-only. `since`: the first Linux for which it says what comes of
    it."""

    number: int
    who: str
    text: str
    steps: tuple[Step, ...]
    since: tuple[int, int] = (0, 0)

    @property
    def names(self) -> Names:
        return names_in(word for step in self.steps for word in step.words[1:])

    @property
    def places(self) -> list[Place]:
        """Where it makes a difference: a single step that fails touches nothing, so all files of lower layers are
        alike for it, and new files in place of old ones are new files but for their names."""
        if self.who == _READ_ONLY:
            return [Place.LOWER, Place.MERGED, Place.OPAQUE]
        if len(self.steps) == 1 and self.steps[0].outcome in errno.errorcode.values():
            return [Place.MERGED, Place.OPAQUE]
        is_about_names = any(step.words[0] in _CHANGING_NAMES for step in self.steps)
        return [place for place in Place if place is not Place.REPLACED or is_about_names]


class Case(NamedTuple):
    """A row in a place."""

    row: Row
    place: Place

    @property
    def kit(self) -> str:
        return f"{KITS}/{self.place.value}/{self.row.number:04d}"

    def __str__(self) -> str:
        return f"{self.row.who}, {self.place.value}: {self.row.text}"


class Seen(NamedTuple):
    """`steps` are values or names of errors, `files` what is in the kit afterwards, by path."""

    steps: list[Any]
    files: dict[str, list[object]]


def read_table() -> list[Row]:
    rows = []
    who, since = "", (0, 0)
    for line in _TABLE.read_text("ascii").splitlines():
        if heading := re.fullmatch(r"\[([a-z-]+): .+?(?: since (\d+)\.(\d+))?\]", line):
            who, since = heading[1], (int(heading[2] or 0), int(heading[3] or 0))
        elif line and not line.startswith("#"):
            rows.append(Row(len(rows), who, line, tuple(map(_parse_step, line.split(";"))), since))
    return rows


def _parse_step(text: str) -> Step:
    action, _, outcome = text.partition("->")
    return Step(tuple(action.split()), outcome.strip() or "ok")


def cases(*, writable: bool) -> list[Case]:
    """All that is to be done to a writable mount, or to a read-only one."""
    rows = [row for row in read_table() if (row.who == _READ_ONLY) != writable]
    return [Case(row, place) for row in rows for place in row.places]


def plant_kits(layers: Sequence[Path]) -> None:
    """Make the layers of the image that the suite runs on: three directories, bottom first."""
    for case in (*cases(writable=True), *cases(writable=False)):
        plant(layers, case.place, case.kit, case.row.names)


def run_table(root: Path, *, writable: bool) -> dict[Case, Seen]:
    """Do every case once on a fresh mount of the planted image."""
    _stop_access_times(root)
    todo = cases(writable=writable)
    clock = [time.time_ns()]
    if writable:
        for case in todo:
            prepare(root / case.kit, case.place, case.row.names.targets)
    time.sleep(_CLOCK_TICK_S)
    clock.append(time.time_ns())
    time.sleep(_CLOCK_TICK_S)
    results: dict[Case, list[Any]] = {}
    for who, group in itertools.groupby(sorted(todo, key=_identity), key=_identity):
        results |= _run_as(who, root, list(group))
    clock.append(time.time_ns())
    return {case: Seen(results[case], dict(_files_in(root / case.kit, clock))) for case in todo}


def _stop_access_times(root: Path) -> None:
    """So that looking changes nothing. Over layers of FUSE nothing has times of access anyhow: its inodes are
    S_NOATIME, and overlayfs takes that over (ovl_copyflags)."""
    with owned_fd(os.open(root, os.O_PATH | os.O_CLOEXEC)) as fd:
        linux.mount_setattr(fd, attr_set=linux.MOUNT_ATTR_NOATIME, attr_clr=_MOUNT_ATTR_ATIME)


def _identity(case: Case) -> str:
    return "user" if case.row.who == "user" else "root"


def _run_as(who: str, root: Path, todo: Sequence[Case]) -> dict[Case, list[Any]]:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        _serve_child(who, root, todo, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert isinstance(answer, list), answer
    return dict(zip(todo, answer, strict=True))


def _serve_child(who: str, root: Path, todo: Sequence[Case], writer: int) -> Never:
    answer: object = ""
    try:
        os.chdir(root)
        if who == "user":
            os.setgroups(GROUPS)
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
        answer = _run_rows(todo)
    except BaseException:
        answer = traceback.format_exc()
    finally:
        with open(writer, "w", encoding="ascii") as pipe:
            json.dump(answer, pipe)
        os._exit(0)


def _run_rows(todo: Sequence[Case]) -> list[list[Any]]:
    home = os.open(".", os.O_PATH | os.O_DIRECTORY)
    results = []
    for case in todo:
        os.umask(0o022)
        os.fchdir(home)
        os.chdir(case.kit)
        results.append([_run_step(step) for step in case.row.steps])
    return results


def _run_step(step: Step) -> Any:
    name, *arguments = step.words
    try:
        return OPERATIONS[name](*map(expand, arguments))
    except OSError as error:
        return _error_name(error)


def _error_name(error: OSError) -> str:
    assert error.errno is not None
    return errno.errorcode[error.errno]


def _files_in(kit: Path, clock: Sequence[int]) -> Iterator[tuple[str, list[object]]]:
    paths = [kit]
    for directory, names, files in os.walk(kit):
        paths += [Path(directory, name) for name in sorted((*names, *files))]
    status = {path: path.lstat() for path in paths}
    for path in paths:
        seen = status[path]
        same = [os.path.relpath(other, kit) for other in paths if os.path.samestat(status[other], seen)]
        yield os.path.relpath(path, kit), [
            *status_of(seen), *(_when(time_ns, clock) for time_ns in (seen.st_atime_ns, seen.st_mtime_ns)),
            _is_new(seen.st_ctime_ns, clock), _content(path, seen.st_mode), xattrs_of(os.fsencode(path), follow=False),
            same,  # _IDENTITY
        ]  # fmt: skip


def _when(time_ns: int, clock: Sequence[int]) -> int | str:
    started, prepared, done = clock
    if prepared <= time_ns <= done:
        return "set by the row"
    return "set before" if started <= time_ns < prepared else time_ns


def _is_new(changed_ns: int, clock: Sequence[int]) -> bool:
    """The time of a change is nobody's to set, and layers tell it in their own ways; that it moved is what counts."""
    return changed_ns >= clock[1]


def _content(path: Path, mode: int) -> str:
    if stat.S_ISREG(mode):
        return summary(path.read_bytes())
    return os.readlink(path) if stat.S_ISLNK(mode) else ""


def unmet(seen: Mapping[Case, Seen], *, moves_directories: bool) -> list[str]:
    """Steps that did not come out as the table says, as sentences."""
    told = []
    for case, (results, _) in seen.items():
        if case.row.since > LINUX:
            continue
        for step, result in zip(case.row.steps, results, strict=True):
            found = result if isinstance(result, str) and result in errno.errorcode.values() else "ok"
            expected = _expected(step.outcome, case.place, moves_directories=moves_directories)
            if expected not in {found, "?"}:
                told.append(f"{case}: {' '.join(step.words)} gave {result}, not {expected}")
    return told


def _expected(outcome: str, place: Place, *, moves_directories: bool) -> str:
    if not outcome.startswith("EXDEV?"):
        return outcome
    is_moved = moves_directories or place not in _IN_LOWER_LAYERS
    return (outcome.removeprefix("EXDEV?") or "ok") if is_moved else "EXDEV"


def differences(
    expected: Mapping[Case, Seen], found: Mapping[Case, Seen], deviations: Sequence[Deviation] = ()
) -> list[str]:
    """What came out otherwise, as sentences; empty if the mounts behave alike. Deviations that are none are told too:
    what is excused has to be true."""
    assert expected.keys() == found.keys()
    told = []
    used = set()
    for case in expected:
        pair = expected[case], found[case]
        for deviation in deviations:
            if pair[0] != pair[1] and re.search(deviation.rows, case.row.text):
                used.add(deviation)
                pair = _excused(*pair, deviation.aspect)
        told += [f"{case}: {sentence}" for sentence in _compare(case.row, *pair)]
    return told + [f"This is no deviation any more: {one}" for one in deviations if one not in used]


def _excused(before: Seen, after: Seen, aspect: str) -> tuple[Seen, Seen]:
    if aspect == "everything":
        return before, before
    assert aspect == "identity"
    return _without_identity(before), _without_identity(after)


def _without_identity(seen: Seen) -> Seen:
    return Seen(seen.steps, {path: facts[:_IDENTITY] for path, facts in seen.files.items()})


def _compare(row: Row, before: Seen, after: Seen) -> Iterator[str]:
    for step, one, other in zip(row.steps, before.steps, after.steps, strict=True):
        if one != other:
            yield f"{' '.join(step.words)} gave {other}, not {one}"
    for path in sorted(before.files.keys() | after.files.keys()):
        one, other = before.files.get(path), after.files.get(path)
        if one != other:
            yield f"{path} is {other}, not {one}"
