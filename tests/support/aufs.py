"""A kernel with AUFS, or one that plays what such a kernel answered when it was recorded (golden/aufs.json).

A test makes unions by `AufsUnion(kernel.mount, kernel.bring_up)` and lets programs work in them by `kernel.work`. Where
the kernel has AUFS, both are done, and the result is compared with the record, or recorded again (RECORD_AUFS=FILE).
Elsewhere the record is played: it has to be the same question, down to the option string and every file of the
branches, and the answer is the recorded one: an error, or a directory with the recorded tree in place of the union, and
what became of the writable branch, in which AUFS keeps files of its own.

    {"kernel": {"release": "…", "aufs": "…"},
     "tests": {"<test>": {"<target> #<n>": {"asked": {…}, "answered": {"errno": …} or {"tree": {…}, "branch": {…}}},
                          "<work>": {"asked": {…}, "answered": {"told": …, "tree": {…}, "branch": {…}}}}}}

Trees are {path: [mode, uid, gid, content, attributes, first name]}, where defaults at the end of the list are left out;
content is a text, a link's target or a device's number, and names of one file tell the first of them. Not recorded are
times, and what differs from run to run: names that AUFS makes of inode numbers (pseudo-links), and random ones of mica.
"""

import contextlib
import errno
import itertools
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mica import linux
from mica.engine.aufslinks import bring_up_names
from mica.files import remove_tree

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "aufs.json"
HAS_AUFS = any(line.split()[-1:] == ["aufs"] for line in Path("/proc/filesystems").read_text("ascii").splitlines())
_VERSION = Path("/sys/module/aufs/version")
_RECORD_TO = os.environ.get("RECORD_AUFS")
_XINO = re.compile(rb"xino=(/dev/shm/aufs\.xino\.[0-9a-f]{16})")
_OPEN = re.compile(rb"/proc/self/fd/[0-9]+")
_KEY = re.compile(r"sheets/[0-9a-f]{16}")
_PSEUDO_LINKS = ".wh..wh.plnk/"
_DEFAULTS = ("100644", 0, 0, "", {}, "")
_ATTRIBUTES = ("user.", "trusted.overlay.opaque")
Tree = dict[str, list[Any]]


class AufsKernel:
    """The kernel for one test, whose directory is `home`: paths are recorded relative to it."""

    def __init__(self, home: Path, test: str) -> None:
        self.xinos: list[bytes] = []
        self._home = home
        self._test = test
        self._counts: dict[str, int] = {}
        self._numbers = itertools.count()
        self._record: dict[str, Any] = _read(GOLDEN)["tests"].get(test, {})
        self._made: dict[str, Any] = {}

    def close(self) -> None:
        """Raises AssertionError if not all that is recorded was asked."""
        if HAS_AUFS and _RECORD_TO:
            document = _read(Path(_RECORD_TO))
            document["kernel"] = {"release": os.uname().release, "aufs": _VERSION.read_text("utf-8").strip()}
            document["tests"][self._test] = self._made
            Path(_RECORD_TO).write_text(format_record(document), "utf-8")
        else:
            assert set(self._made) == set(self._record), "not everything was asked that is recorded"

    # What is asked

    def mount(self, source: str, target: Path, fstype: str, *, flags: int, data: bytes) -> None:
        """In place of `linux.mount`."""
        assert (source, fstype) == ("none", "aufs")
        name = f"{self._short(target)} #{self._next(target)}"
        self.xinos += _XINO.findall(data)
        # Which number an open directory has is chance.
        plain = _OPEN.sub(lambda found: os.readlink(found[0]), _XINO.sub(b"xino=XINO", data))
        paths = re.findall(rb"[:,](/[^=]*)=r", b"," + plain)
        writable = next((Path(os.fsdecode(path)) for path in re.findall(rb":(/[^=]*)=rw", plain)), None)
        asked = {
            "flags": flags,
            "options": self._short_text(plain),
            "branches": {self._short(Path(os.fsdecode(path))): dump(Path(os.fsdecode(path))) for path in paths},
        }

        def ask() -> dict[str, Any]:
            try:
                linux.mount(source, target, fstype, flags=flags, data=data)
            except OSError as error:
                return {"errno": errno.errorcode[error.errno or 0]}
            return {"tree": dump(target), **({"branch": dump(writable)} if writable else {})}

        answered = self._exchange(name, asked, ask)
        if "errno" in answered:
            number = getattr(errno, answered["errno"])
            raise OSError(number, os.strerror(number))
        if not HAS_AUFS:
            self._show(target, answered["tree"], is_new=not flags & linux.MS_REMOUNT)
            if writable:
                restore(writable, answered["branch"])

    def bring_up(self, merged: Path, branch: Path) -> None:
        """In place of `bring_up_names`. It is an exchange where AUFS knows names of one file."""
        name = f"names of {self._short(merged)} #{self._next(branch)}"

        def ask() -> dict[str, Any]:
            bring_up_names(merged, branch)
            return {"branch": dump(branch)}

        if any(branch.glob(f"{_PSEUDO_LINKS}*")) if HAS_AUFS else name in self._record:
            answered = self._exchange(name, {"branch": dump(branch)}, ask)
            if not HAS_AUFS:
                restore(branch, answered["branch"])

    def work(
        self, name: str, merged: Path, branch: Path, program: Callable[[Path], Any], *, is_looked_at: bool = True
    ) -> Any:
        """What a program tells that works in a union with that writable branch. It must tell the same each time.
        Looking at the union afterwards opens all files."""

        def ask() -> dict[str, Any]:
            told = program(merged)
            tree = {"tree": dump(merged)} if is_looked_at else {}
            return {"told": told, **tree, "branch": dump(branch)}

        answered = self._exchange(name, {"branch": dump(branch)}, ask)
        if not HAS_AUFS:
            if is_looked_at:
                self._show(merged, answered["tree"], is_new=False)
            restore(branch, answered["branch"])
        return answered["told"]

    def _exchange(self, name: str, asked: dict[str, Any], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        recorded = self._record.get(name)
        is_recording = HAS_AUFS and _RECORD_TO
        if not is_recording:
            assert recorded is not None, f"no AUFS was ever asked {name!r}: it has to be recorded"
            assert asked == recorded["asked"], f"AUFS was asked something else for {name!r}"
        if HAS_AUFS:
            answered: dict[str, Any] = json.loads(json.dumps(ask()))
            if not is_recording:
                assert answered == recorded["answered"], f"this AUFS answers something else to {name!r}"
        else:
            answered = recorded["answered"]
        self._made[name] = {"asked": asked, "answered": answered}
        return answered

    def _next(self, target: Path) -> int:
        key = self._short(target)
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key]

    def _short(self, path: Path) -> str:
        return _KEY.sub("sheets/KEY", os.fspath(path.relative_to(self._home)))

    def _short_text(self, text: bytes) -> str:
        return _KEY.sub("sheets/KEY", os.fsdecode(text.replace(os.fsencode(self._home) + b"/", b"")))

    def _show(self, target: Path, tree: Tree, *, is_new: bool) -> None:
        """A directory in place of the union."""
        if is_new:
            shown = self._home / f".played-{next(self._numbers)}"
            shown.mkdir()
            linux.mount(shown, target, flags=linux.MS_BIND)
        restore(target, tree)


def has_answers(test: str) -> bool:
    """Whether a kernel, or the record of one, can answer a test."""
    return HAS_AUFS or test in _read(GOLDEN)["tests"]


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"tests": {}}
    return document


def format_record(document: dict[str, Any]) -> str:
    """A line for each exchange."""
    lines = [f'{{"kernel": {json.dumps(document["kernel"])},\n"tests": {{']
    for test, exchanges in sorted(document["tests"].items()):
        lines.append(f"{json.dumps(test)}: {{")
        lines += [f" {json.dumps(name)}: {_compact(value)}," for name, value in exchanges.items()]
        lines[-1] = lines[-1].removesuffix(",")
        lines.append("},")
    lines[-1] = lines[-1].removesuffix(",")
    return "\n".join([*lines, "}}", ""])


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def entry_of(*values: Any) -> list[Any]:
    """An entry of a tree without the defaults at its end."""
    kept = len(values)
    while kept and values[kept - 1] == _DEFAULTS[kept - 1]:
        kept -= 1
    return list(values[:kept])


def full(tree: Tree) -> Tree:
    """A tree with all values of its entries."""
    return {name: [*entry, *_DEFAULTS[len(entry) :]] for name, entry in tree.items()}


def dump(root: Path) -> Tree:
    """A tree as a value, without times."""
    found: Tree = {}
    first: dict[int, str] = {}
    for path in (root, *sorted(root.rglob("*"))):
        name = os.fspath(path.relative_to(root))
        if name.startswith(_PSEUDO_LINKS):
            continue
        status = path.lstat()
        content: str | int = ""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes().decode("latin-1")
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            content = status.st_rdev
        link = ""
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            link = first.setdefault(status.st_ino, name)
        found[name] = entry_of(
            f"{status.st_mode:o}",
            status.st_uid,
            status.st_gid,
            content,
            _attributes(path),
            "" if link == name else link,
        )
    return found


def _attributes(path: Path) -> dict[str, str]:
    if path.is_symlink():
        return {}
    names = [name for name in os.listxattr(path) if name.startswith(_ATTRIBUTES)]
    return {name: os.getxattr(path, name).decode("latin-1") for name in sorted(names)}


def restore(root: Path, tree: Tree) -> None:
    """Make a directory what was dumped; it may have anything in it."""
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink()
    for name, (mode, uid, gid, content, attributes, link) in full(tree).items():
        path, bits = root / name, int(mode, 8)
        if link:
            os.link(root / link, path, follow_symlinks=False)
            continue
        if stat.S_ISDIR(bits):
            path.mkdir(exist_ok=True)
        elif stat.S_ISREG(bits):
            path.write_bytes(content.encode("latin-1"))
        elif stat.S_ISLNK(bits):
            path.symlink_to(content)
        else:
            os.mknod(path, stat.S_IFMT(bits), content or 0)
        os.chown(path, uid, gid, follow_symlinks=False)
        if not stat.S_ISLNK(bits):
            path.chmod(stat.S_IMODE(bits))
            for key, value in attributes.items():
                os.setxattr(path, key, value.encode("latin-1"))


@contextlib.contextmanager
def as_user(uid: int) -> Any:
    """Rights of somebody else, for looking at files."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
