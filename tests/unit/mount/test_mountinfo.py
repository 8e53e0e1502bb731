"""What is mounted, as the kernel tells it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mica.mount.mountinfo import Mount, find_mount, parse_mountinfo

# The first line is proc_pid_mountinfo(5)'s own example.
EXAMPLE = rb"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
37 35 0:5 / /proc rw - proc proc rw
38 35 0:60 / /a\040b\011c\012d\134e ro,nosuid shared:2 master:1 propagate_from:3 - fuse.mica mica#x\040y ro,user_id=0
"""


def test_lines_become_mounts() -> None:
    assert parse_mountinfo(EXAMPLE) == [
        Mount(b"/mnt2", "ext3", b"/dev/root", b"rw,noatime", 36, b"rw,errors=continue"),
        Mount(b"/proc", "proc", b"proc", b"rw", 37, b"rw"),
        Mount(b"/a b\tc\nd\\e", "fuse.mica", b"mica#x y", b"ro,nosuid", 38, b"ro,user_id=0"),
    ]


def test_carriage_returns_are_not_escaped_by_the_kernel() -> None:
    line = b"37 35 0:5 / /a\rb rw - fuse.mica mica#x\r ro\n"
    assert parse_mountinfo(line) == [Mount(b"/a\rb", "fuse.mica", b"mica#x\r", b"rw", 37, b"ro")]


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"36 35 98:0", b"36 35 98:0 / /x rw", b"36 35 98:0 / /x rw - ext4 x", b" - "]
)
def test_lines_that_are_cut_are_left_out(line: bytes) -> None:
    assert parse_mountinfo(line) == []


@given(st.binary().filter(lambda name: b"\0" not in name))
def test_any_name_is_read_back(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes((byte,)) for byte in name)
    [mount] = parse_mountinfo(b"1 2 0:3 / /%s rw shared:1 - fuse.mica s rw" % escaped)
    assert mount.target == b"/" + name


def test_what_is_mounted_here(tmp_path: Path) -> None:
    root = find_mount(Path("/"))
    assert root is not None
    assert root.target == b"/"
    proc = find_mount(Path("/proc"))
    assert proc is not None
    assert proc.fstype == "proc"
    assert find_mount(tmp_path) is None
    assert find_mount(tmp_path / "missing") is None
    os.symlink("/proc", tmp_path / "link")
    assert find_mount(tmp_path / "link") == proc
