"""What is mounted, as the kernel tells it."""

import os
from pathlib import Path

import pytest

from mica.mountinfo import Mount, find_mount, mount_namespaces, parse_mountinfo, read_mounts, read_mounts_of

# The first line is proc_pid_mountinfo(5)'s own example.
EXAMPLE = rb"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
37 35 0:5 / /proc rw - proc proc rw
38 35 0:60 / /a\040b\011c\012d\134e ro,nosuid shared:2 master:1 propagate_from:3 - fuse.mica mica#x\040y ro,user_id=0
"""


def test_lines_become_mounts() -> None:
    assert parse_mountinfo(EXAMPLE) == [
        Mount(b"/mnt2", b"ext3", b"/dev/root", b"rw,noatime", 36, b"rw,errors=continue", (98, 0)),
        Mount(b"/proc", b"proc", b"proc", b"rw", 37, b"rw", (0, 5)),
        Mount(b"/a b\tc\nd\\e", b"fuse.mica", b"mica#x y", b"ro,nosuid", 38, b"ro,user_id=0", (0, 60)),
    ]


@pytest.mark.parametrize("byte", [b"\r", b"\v", b"\f", b"\x1c", b"\x1d", b"\x1e", b"\x85", b"\xff", "\u2028".encode()])
def test_the_kernel_escapes_neither_line_ends_of_text_nor_what_is_no_text(byte: bytes) -> None:
    odd = b"37 35 0:5 / /a%sb rw - fuse.x%s s%s ro,x=%s" % (byte, byte, byte, byte)
    first, mount, last = parse_mountinfo(b"1 2 0:3 / /1 rw - a a rw\n%s\n3 2 0:4 / /2 rw - b b rw\n" % odd)
    assert mount == Mount(b"/a%sb" % byte, b"fuse.x" + byte, b"s" + byte, b"rw", 37, b"ro,x=" + byte, (0, 5))
    assert (first.target, last.target) == (b"/1", b"/2")


def test_a_source_may_be_empty_or_a_dash() -> None:
    empty, dash = parse_mountinfo(b"1 2 0:3 / /x rw - tmpfs  rw\n2 2 0:4 /- /- rw shared:1 - - - rw")
    assert (empty.source, empty.super_options) == (b"", b"rw")
    assert (dash.target, dash.fstype, dash.source) == (b"/-", b"-", b"-")


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\n", b"36 35 98:0", b"36 35 98:0 / /x rw", b"36 35 98:0 / /x rw - ext4 x", b" - ",
        b"x 35 98:0 / /x rw - ext4 x rw", b"36 35 98 / /x rw - ext4 x rw", b"36 35 98:y / /x rw - ext4 x rw",
    ],
)  # fmt: skip
def test_lines_that_are_none_are_left_out(line: bytes) -> None:
    assert parse_mountinfo(line) == []


def test_what_is_mounted_here(tmp_path: Path) -> None:
    root = find_mount(Path("/"))
    assert root is not None
    assert root.target == b"/"
    proc = find_mount(Path("/proc"))
    assert proc is not None
    assert proc.fstype == b"proc"
    assert find_mount(tmp_path) is None
    assert find_mount(tmp_path / "missing") is None
    os.symlink("/proc", tmp_path / "link")
    assert find_mount(tmp_path / "link") == proc


def test_what_is_mounted_for_a_process() -> None:
    assert mount_namespaces()[os.readlink("/proc/self/ns/mnt")] == "self"
    assert read_mounts_of("self") == read_mounts() != []
    assert read_mounts_of("0") == []
