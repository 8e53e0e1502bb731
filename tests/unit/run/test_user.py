"""User strings against passwd and group files, and the ways a hostile image can lay them out."""

import os
from pathlib import Path

import pytest

from mica.errors import UserError
from mica.run.user import FILE_MAX_BYTES, User, find_user, open_inside, parse_group, parse_passwd, resolve_user

PASSWD = b"""# comment
root:x:0:0:root:/root:/bin/sh
broken:x:one:0::/:/bin/sh
web:x:33:34:web,,,:/var/www:/bin/false
1000:x:7:7::/digits:/bin/sh
huge:x:99999999999:1::/:/bin/sh
bare:x:50:50:::
web:x:99:99::/second:/bin/sh
"""
GROUP = b"""root:x:0:
adm:x:4:web,root
www:x:34:web
audio:x:29:web,nobody
wheel:x:10:root
bad:x:-1:web
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(PASSWD)
    (tmp_path / "etc/group").write_bytes(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (0, 4, 10), "/root")),
        ("root", User(0, 0, (0, 4, 10), "/root")),
        ("0", User(0, 0, (0, 4, 10), "/root")),
        ("web", User(33, 34, (34, 4, 29), "/var/www")),
        ("33", User(33, 34, (34, 4, 29), "/var/www")),
        ("web:", User(33, 34, (34, 4, 29), "/var/www")),
        ("web:adm", User(33, 4, (4,), "/var/www")),
        ("web:4242", User(33, 4242, (4242,), "/var/www")),
        (":adm", User(0, 4, (4,), "/root")),
        ("1000", User(1000, 0, (0,), "/")),
        ("1000:29", User(1000, 29, (29,), "/")),
        ("bare", User(50, 50, (50,), "/")),
        ("2147483647", User(2147483647, 0, (0,), "/")),
    ],
)
def test_rules_are_dockers(root: Path, text: str, user: User) -> None:
    assert resolve_user(root, text) == user


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nobody", "There is no 'user nobody' in the container's /etc/passwd"),
        ("web:nogroup", "There is no 'group nogroup' in the container's /etc/group"),
        ("broken", "no 'user broken'"),
        ("huge", "no 'user huge'"),
        ("-1", "no 'user -1'"),
        ("\u0663", "no 'user"),
        ("2147483648", "out of range"),
        ("9" * 5000, "out of range"),
        ("0:4294967295", "out of range"),
    ],
)
def test_unknown_users_are_named(root: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve_user(root, text)


def test_an_empty_tree_has_root_and_numbers(tmp_path: Path) -> None:
    assert resolve_user(tmp_path, "") == User(0, 0, (0,), "/")
    assert resolve_user(tmp_path, "5:6") == User(5, 6, (6,), "/")


def test_undecodable_names_are_kept_apart() -> None:
    passwd = parse_passwd(b"a\xff:x:1:2::/h:\nb:x:3:4::/h:\r\n")
    assert find_user("b", passwd, parse_group(b"")).uid == 3
    assert find_user("a\udcff", passwd, ()).uid == 1


def test_links_stay_inside(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "passwd"
    outside.write_bytes(b"root:x:0:0::/outside:\nspy:x:1:1::/:\n")
    (root / "etc/passwd").unlink()
    for target in (str(outside), f"../../../../../../../..{outside}", f"/../..{outside}"):
        (root / "etc/passwd").symlink_to(target)
        assert resolve_user(root, "").home == "/"  # inside the root there is nothing of that name
        (root / "etc/passwd").unlink()


def test_links_inside_are_followed(root: Path) -> None:
    (root / "store/x").mkdir(parents=True)
    (root / "etc/passwd").rename(root / "store/x/passwd")
    (root / "etc/passwd").symlink_to("/store/../link/./passwd")
    (root / "link").symlink_to("../../store/x/")
    assert resolve_user(root, "web").uid == 33


def test_a_linked_directory_stays_inside(root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/group").unlink()
    (root / "etc").rmdir()
    (root / "etc").symlink_to("/etc")
    with pytest.raises(UserError, match="symbolic links"):
        resolve_user(root, "")


def test_what_is_not_a_file_is_refused(root: Path) -> None:
    for make in (os.mkdir, os.mkfifo):
        (root / "etc/group").unlink(missing_ok=True)
        make(root / "etc/group")
        with pytest.raises(UserError, match="/etc/group is not a regular file"):
            resolve_user(root, "")
        if make is os.mkdir:
            os.rmdir(root / "etc/group")


def test_a_huge_file_is_refused(root: Path) -> None:
    os.truncate(root / "etc/passwd", FILE_MAX_BYTES + 1)
    with pytest.raises(UserError, match="at most 4194304 are read"):
        resolve_user(root, "")


def test_no_descriptor_is_left(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (root / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"), open_inside(root, "loop"):
        pass
    resolve_user(root, "web")
    assert len(os.listdir("/proc/self/fd")) == before
