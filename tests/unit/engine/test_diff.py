"""The archive of a difference: what is in it, in which order, and that unpacking gives the same tree again."""

import io
import os
import shutil
import socket
from pathlib import Path

import pytest
from tests.support.noise import noise
from tests.support.tars import contents, entries
from tests.support.tools import need_root
from tests.support.trees import differences, make_everything, snapshot
from tests.support.uppers import signs, upper

from mica.engine.diff import Change, ChangeKind, list_changes, measure, write_diff
from mica.engine.unpack import unpack_layer
from mica.engine.uppertree import UpperTree
from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.errors import UserError
from mica.files import owned_fd
from mica.tarstream import Kind

__all__ = ["signs", "upper"]

SECOND = 1_000_000_000


def archive_of(upper: Path, signs: Whiteouts, view: Path | None = None) -> bytes:
    with UpperTree(upper, view or upper, signs) as tree:
        return b"".join(write_diff(tree))


def changes_of(upper: Path, signs: Whiteouts, below: Path | None) -> list[Change]:
    with UpperTree(upper, upper, signs) as tree:
        return list_changes(tree, below)


def unpacked(archive: bytes, target: Path, signs: Whiteouts) -> Path:
    target.mkdir()
    unpack_layer(io.BytesIO(archive), target, signs)
    return target


def put(place: Path, *names: str) -> None:
    """Files with the directories above them."""
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(name.encode())


def remove(signs: Whiteouts, directory: Path, name: bytes) -> None:
    with owned_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        signs.remove(fd, name)


def hide(signs: Whiteouts, directory: Path) -> None:
    with owned_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        signs.hide_below(fd)


def names_in(archive: bytes) -> list[bytes]:
    return [entry.name.rstrip(b"/") for entry in entries(archive)]


def cut_times(root: Path) -> None:
    """To whole seconds, as an archive has them."""
    for directory, below, files in os.walk(os.fsencode(root), topdown=False):
        for name in (*below, *files, b"."):
            path = os.path.join(directory, name)
            time_ns = os.lstat(path).st_mtime_ns // SECOND * SECOND
            os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


# There and back


def test_a_tree_with_everything_comes_back(tmp_path: Path, upper: Path) -> None:
    need_root()
    make_everything(upper)
    os.unlink(upper / "plain/.wh.not-a-whiteout-here")
    cut_times(upper)
    signs = OverlayWhiteouts()
    back = unpacked(archive_of(upper, signs), tmp_path / "back", signs)
    expected, found = snapshot(os.fsencode(upper)), snapshot(os.fsencode(back))
    # The archive does not tell of the root.
    del expected[b""], found[b""]
    assert len(expected) > 100
    assert differences(expected, found) == []


def test_a_plain_tree_comes_back_for_anybody(tmp_path: Path, upper: Path) -> None:
    put(upper, "a", "d/b", "d/e/f", "n" * 200, "é\n")
    os.link(upper / "a", upper / "d/same")
    (upper / "link").symlink_to("../" * 50)
    os.mkfifo(upper / "fifo")
    os.chmod(upper / "d", 0o1710)
    cut_times(upper)
    back = unpacked(archive_of(upper, AufsWhiteouts()), tmp_path / "back", AufsWhiteouts())
    expected, found = snapshot(os.fsencode(upper)), snapshot(os.fsencode(back))
    del expected[b""], found[b""]
    assert differences(expected, found) == []


def test_signs_come_back(tmp_path: Path, upper: Path, signs: Whiteouts) -> None:
    put(upper, "d/x", "hides/y")
    remove(signs, upper / "d", b"gone")
    remove(signs, upper, b"\xff")
    hide(signs, upper / "hides")
    hide(signs, upper)
    archive = archive_of(upper, signs)
    assert names_in(archive) == [
        b".wh..wh..opq", b"d", b"d/.wh.gone", b"d/x", b"hides", b"hides/.wh..wh..opq", b"hides/y", b".wh.\xff",
    ]  # fmt: skip
    back = unpacked(archive, tmp_path / "back", signs)
    assert archive_of(back, signs) == archive


def test_signs_of_one_union_become_those_of_the_other(tmp_path: Path, upper: Path) -> None:
    need_root()
    put(upper, "d/x")
    remove(AufsWhiteouts(), upper / "d", b"gone")
    hide(AufsWhiteouts(), upper / "d")
    archive = archive_of(upper, AufsWhiteouts())
    back = unpacked(archive, tmp_path / "back", OverlayWhiteouts())
    assert sorted(os.listdir(back / "d")) == ["gone", "x"]
    assert archive_of(back, OverlayWhiteouts()) == archive


# Order and content


def test_the_same_tree_gives_the_same_bytes_in_whatever_order_it_was_made(tmp_path: Path, signs: Whiteouts) -> None:
    names = [f"{letter}/{number}" for letter in "abc" for number in range(20)]
    archives = set()
    for label, order in (("one", names), ("other", names[::-1])):
        place = tmp_path / label
        for name in order:
            put(place, name)
            os.utime(place / name, (5, 5))
        for directory in "abc":
            remove(signs, place / directory, b"gone")
            os.utime(place / directory, (6, 6))
        archives.add(archive_of(place, signs))
    assert len(archives) == 1


def test_the_order_is_that_of_paths(upper: Path, signs: Whiteouts) -> None:
    put(upper, "b/z", "b-c", "a", "Z", "b/a/x")
    remove(signs, upper, b"aa")
    assert names_in(archive_of(upper, signs)) == [b"Z", b"a", b".wh.aa", b"b", b"b/a", b"b/a/x", b"b/z", b"b-c"]


def test_a_file_of_several_names_is_there_once(upper: Path) -> None:
    put(upper, "z", "one")
    os.link(upper / "z", upper / "a")
    os.link(upper / "z", upper / "m")
    archive = archive_of(upper, AufsWhiteouts())
    assert [(entry.name, entry.kind, entry.link) for entry in entries(archive)] == [
        (b"a", Kind.REGULAR, b""), (b"m", Kind.HARDLINK, b"a"), (b"one", Kind.REGULAR, b""),
        (b"z", Kind.HARDLINK, b"a"),
    ]  # fmt: skip
    with UpperTree(upper, upper, AufsWhiteouts()) as tree:
        assert measure(tree.differences()) == len("z") + len("one")


def test_times_are_whole_seconds_towards_the_past(upper: Path) -> None:
    for name, time_ns in (("a", 5 * SECOND + 999_999_999), ("b", -1), ("c", 0)):
        put(upper, name)
        os.utime(upper / name, ns=(time_ns, time_ns))
    assert [entry.mtime_s for entry in entries(archive_of(upper, AufsWhiteouts()))] == [5, -1, 0]


def test_sockets_are_left_out(upper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(upper, "a", "z")
    monkeypatch.chdir(upper)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    assert names_in(archive_of(upper, AufsWhiteouts())) == [b"a", b"z"]


def test_attributes_that_steer_unions_stay_out(upper: Path) -> None:
    need_root()
    put(upper, "d/x")
    for name in ("d", "d/x"):
        os.setxattr(upper / name, "trusted.overlay.origin", b"")
        os.setxattr(upper / name, "user.mine", b"m")
    for entry in entries(archive_of(upper, OverlayWhiteouts())):
        assert entry.xattrs == {b"user.mine": b"m"}


def test_large_files_come_in_pieces(upper: Path) -> None:
    content = noise((5 << 20) + 3)
    (upper / "large").write_bytes(content)
    with UpperTree(upper, upper, AufsWhiteouts()) as tree:
        pieces = list(write_diff(tree))
    assert max(map(len, pieces)) <= (1 << 20) + 512
    assert contents(b"".join(pieces)) == [(b"large", content)]


def test_a_path_that_no_archive_can_say(upper: Path) -> None:
    place = os.open(upper, os.O_PATH | os.O_DIRECTORY)
    for _ in range(20):
        os.mkdir("d" * 200, dir_fd=place)
        inner = os.open("d" * 200, os.O_PATH | os.O_DIRECTORY, dir_fd=place)
        os.close(place)
        place = inner
    os.mkdir("e" * 100, dir_fd=place)
    os.close(place)
    with pytest.raises(UserError, match="a longer path than an archive can hold"):
        archive_of(upper, AufsWhiteouts())


# While programs go on


def test_a_file_that_shrinks_gets_zeros_and_one_that_grows_is_cut(upper: Path) -> None:
    for name in ("grows", "shrinks"):
        (upper / name).write_bytes(b"x" * (2 << 20))
    with UpperTree(upper, upper, AufsWhiteouts()) as tree:
        pieces = []
        for piece in write_diff(tree):
            pieces.append(piece)
            if b"grows" in piece[:100]:
                with (upper / "grows").open("ab") as file:
                    file.write(b"more")
            if b"shrinks" in piece[:100]:
                os.truncate(upper / "shrinks", 1 << 20)
    first, second = b"x" * (2 << 20), b"x" * (1 << 20) + bytes(1 << 20)
    assert contents(b"".join(pieces)) == [(b"grows", first), (b"shrinks", second)]


@pytest.mark.parametrize("replacement", ["nothing", "link", "socket"])
def test_what_becomes_something_else_between_two_looks_is_left_out(
    upper: Path, monkeypatch: pytest.MonkeyPatch, replacement: str
) -> None:
    put(upper, "a", "secret", "x")
    real = UpperTree.open
    monkeypatch.chdir(upper)

    def change_and_open(tree: UpperTree, path: bytes) -> int:
        if path == b"a":
            (upper / "a").unlink()
            if replacement == "link":
                (upper / "a").symlink_to("secret")
            elif replacement == "socket":
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind("a")
        return real(tree, path)

    monkeypatch.setattr(UpperTree, "open", change_and_open)
    assert contents(archive_of(upper, AufsWhiteouts())) == [(b"secret", b"secret"), (b"x", b"x")]


# Changes


def test_changes(tmp_path: Path, upper: Path, signs: Whiteouts) -> None:
    below = tmp_path / "below"
    put(below, "d/changed", "d/gone", "same/x", "hidden/old", "hidden/kept", "turned/x")
    shutil.copytree(below / "same", upper / "same")
    put(upper, "d/changed", "d/added", "hidden/kept", "turned")
    remove(signs, upper / "d", b"gone")
    hide(signs, upper / "hidden")
    (upper / "same/x").unlink()
    for place in (upper, below):
        os.utime(place / "same", ns=(0, 0))
    assert [(change.path, change.kind.name) for change in changes_of(upper, signs, below)] == [
        (b"d", "MODIFIED"), (b"d/added", "ADDED"), (b"d/changed", "MODIFIED"), (b"d/gone", "DELETED"),
        (b"hidden", "MODIFIED"), (b"hidden/kept", "MODIFIED"), (b"hidden/old", "DELETED"), (b"turned", "MODIFIED"),
    ]  # fmt: skip


def test_a_root_that_hides_deletes_what_it_does_not_have(tmp_path: Path, upper: Path, signs: Whiteouts) -> None:
    put(tmp_path / "below", "old", "kept/old", "kept/new")
    put(upper, "kept/new")
    hide(signs, upper)
    assert changes_of(upper, signs, tmp_path / "below") == [
        (b"kept", ChangeKind.MODIFIED), (b"kept/new", ChangeKind.MODIFIED), (b"kept/old", ChangeKind.DELETED),
        (b"old", ChangeKind.DELETED),
    ]  # fmt: skip


def test_without_a_parent_everything_was_added(upper: Path) -> None:
    put(upper, "d/x")
    assert changes_of(upper, AufsWhiteouts(), None) == [(b"d", ChangeKind.ADDED), (b"d/x", ChangeKind.ADDED)]


def test_a_directory_that_vanishes_while_changes_are_listed(
    tmp_path: Path, upper: Path, signs: Whiteouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "below", "d/old", "z")
    put(upper, "d/x", "z")
    hide(signs, upper / "d")
    real = UpperTree.names

    def remove_and_list(tree: UpperTree, directory: bytes) -> set[bytes]:
        shutil.rmtree(upper / os.fsdecode(directory))
        return real(tree, directory)

    monkeypatch.setattr(UpperTree, "names", remove_and_list)
    assert changes_of(upper, signs, tmp_path / "below") == [(b"d", ChangeKind.MODIFIED), (b"z", ChangeKind.MODIFIED)]


def test_sizes_count_content_alone(upper: Path) -> None:
    put(upper, "d/12345", "x")
    (upper / "link").symlink_to("a long target")
    remove(AufsWhiteouts(), upper, b"gone")
    with UpperTree(upper, upper, AufsWhiteouts()) as tree:
        assert measure(tree.differences()) == len("d/12345") + len("x")


@pytest.mark.parametrize("target", ["/", "../../outside"])
def test_no_link_of_the_parent_is_followed(tmp_path: Path, upper: Path, signs: Whiteouts, target: str) -> None:
    """What a link of an image leads to on this machine is nobody's difference."""
    put(tmp_path / "outside", "secret", "x", "deep/y")
    put(tmp_path / "layers/below", "z")
    outside = tmp_path / "outside" if target == "/" else target
    (tmp_path / "layers/below/d").symlink_to(outside)
    put(upper, "d/x", "d/deep/y", "z")
    hide(signs, upper / "d")
    assert [(change.path, change.kind.name) for change in changes_of(upper, signs, tmp_path / "layers/below")] == [
        (b"d", "MODIFIED"), (b"d/deep", "ADDED"), (b"d/deep/y", "ADDED"), (b"d/x", "ADDED"), (b"z", "MODIFIED"),
    ]  # fmt: skip


def test_a_long_path_is_looked_up_in_the_parent_too(tmp_path: Path, upper: Path) -> None:
    """With the parent's own path it would be longer than the kernel takes."""
    name = b"/".join([b"d" * 200] * 20)
    for root in (upper, tmp_path / "below"):
        place = tmp_path
        fd = os.open(place, os.O_PATH | os.O_DIRECTORY)
        for part in [os.fsencode(root.name), *name.split(b"/")]:
            try:
                os.mkdir(part, dir_fd=fd)
            except FileExistsError:
                assert part == b"upper"
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.mkdir(os.fsencode(root.name), dir_fd=fd)
        os.close(fd)
    changes = changes_of(upper, AufsWhiteouts(), tmp_path / "below")
    assert (name + b"/upper", ChangeKind.ADDED) in changes
    assert (name[:200], ChangeKind.ADDED) not in changes
