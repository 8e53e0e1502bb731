"""What a writable mount promises of files that come from an image: they change as if they had been on a local disk."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import syscalls
from tests.support.mountpaths import MountPath
from tests.support.publishedimages import PublishedImage
from tests.support.suiteimage import LISTED, Supplies
from tests.support.trees import differences, look_at, snapshot

Change = Callable[[Path, bytes], bytes]
"""Changes a file with a content that is known, and returns the content that it has to have then."""


def _append(path: Path, before: bytes) -> bytes:
    with path.open("ab") as file:
        file.write(b"appended")
    return before + b"appended"


def _write_inside(path: Path, before: bytes) -> bytes:
    middle = len(before) // 2
    with path.open("r+b") as file:
        file.seek(middle)
        file.write(b"inside")
    return before[:middle] + b"inside" + before[middle + 6 :]


def _write_behind(path: Path, before: bytes) -> bytes:
    with path.open("r+b") as file:
        file.seek(len(before) + 10_000)
        file.write(b"behind")
    return before + bytes(10_000) + b"behind"


def _replace_content(path: Path, _: bytes) -> bytes:
    path.write_bytes(b"replaced")
    return b"replaced"


def _cut(path: Path, before: bytes) -> bytes:
    os.truncate(path, len(before) // 3)
    return before[: len(before) // 3]


def _empty(path: Path, _: bytes) -> bytes:
    os.truncate(path, 0)
    return b""


def _grow(path: Path, before: bytes) -> bytes:
    with path.open("r+b") as file:
        file.truncate(len(before) + 5000)
    return before + bytes(5000)


def _write_twice(path: Path, before: bytes) -> bytes:
    return _write_inside(path, _append(path, before))


CHANGES: dict[str, Change] = {
    "append": _append, "write inside": _write_inside, "write behind the end": _write_behind,
    "replace": _replace_content, "cut": _cut, "empty": _empty, "grow": _grow, "append, write inside": _write_twice,
}  # fmt: skip
SETTINGS: dict[str, Callable[[Path], object]] = {
    "mode": lambda path: path.chmod(0o4750),
    "owner": lambda path: os.chown(path, 1234, 5678),
    "mtime_ns": lambda path: os.utime(path, ns=(5, 1_234_567_890_987_654_321)),
    "xattrs": lambda path: os.setxattr(path, "user.mark", b"here"),
}
KINDS = ["empty", "small", "chunked"]


def take(supplies: Supplies, kind: str) -> Path:
    if kind == "chunked":
        return supplies.chunked()
    return supplies.file(size=0 if kind == "empty" else 12_345)


class ChangesContract:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
    @pytest.mark.parametrize("kind", KINDS)
    def test_content_changes(self, supplies: Supplies, kind: str, change: Change) -> None:
        path = take(supplies, kind)
        before = path.lstat()
        expected = change(path, supplies.content(path))
        assert path.read_bytes() == expected
        after = path.lstat()
        assert after.st_size == len(expected)
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)

    @pytest.mark.parametrize("aspect", SETTINGS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_setting_an_attribute_changes_nothing_else(self, supplies: Supplies, kind: str, aspect: str) -> None:
        path = take(supplies, kind)
        before = look_at(path)
        SETTINGS[aspect](path)
        after = look_at(path)
        changed = {name for name in before._fields if getattr(before, name) != getattr(after, name)}
        assert changed == ({"uid", "gid"} if aspect == "owner" else {aspect})
        assert path.read_bytes() == supplies.content(path)
        assert _append(path, supplies.content(path)) == path.read_bytes()

    def test_every_kind_of_file_can_be_changed(
        self, path: MountPath, suite_image: PublishedImage, disk_path: Path
    ) -> None:
        """An attribute set on each file of the tree with everything, whatever its name, kind, mode, owner and time."""
        mark = (b"trusted.mark", b"1")
        original = snapshot(os.fsencode(suite_image.unpacked[0] / "everything"))
        with path.open(suite_image, disk_path / "mount", cache=disk_path / "cache") as root:
            top = os.fsencode(root / "everything")
            for name in original:
                os.setxattr(top + name, *mark, follow_symlinks=False)
            found = snapshot(top)
        # Hard links of a lower layer are broken by design (Documentation/filesystems/overlayfs.rst, "Non-standard
        # behavior").
        expected = {
            name: seen._replace(xattrs=tuple(sorted((*seen.xattrs, mark))), links=()) for name, seen in original.items()
        }
        assert differences(expected, {name: seen._replace(links=()) for name, seen in found.items()}) == []

    def test_an_open_file_follows_what_is_done_by_name(self, supplies: Supplies) -> None:
        path = supplies.chunked()
        content = supplies.content(path)
        with path.open("r+b") as file:
            path.chmod(0o600)
            moved = path.with_name("moved")
            path.rename(moved)
            file.write(b"start")
            file.flush()
            assert moved.read_bytes() == b"start" + content[5:]
            moved.unlink()
            assert os.pread(file.fileno(), 1000, 100) == content[100:1100]
            assert os.fstat(file.fileno()).st_nlink == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_files_move(self, supplies: Supplies, mounted: Path, kind: str) -> None:
        path = take(supplies, kind)
        content, status = supplies.content(path), path.lstat()
        target = supplies.directory()
        for new in (path.with_name(f"renamed-{kind}"), mounted / f"moved-{kind}", target / "new", target / "a"):
            path.rename(new)
            assert not path.exists()
            assert new.read_bytes() == content
            assert new.lstat().st_mtime_ns == status.st_mtime_ns
            path = new
        assert sorted(os.listdir(target)) == ["a", "sub"]

    def test_files_are_exchanged(self, supplies: Supplies) -> None:
        one, other = supplies.chunked(), supplies.file(size=5000)
        contents = supplies.content(one), supplies.content(other)
        syscalls.renameat2(one, other, syscalls.RENAME_EXCHANGE)
        assert (other.read_bytes(), one.read_bytes()) == contents

    def test_directories_move_or_say_that_they_cannot(self, path: MountPath, supplies: Supplies) -> None:
        directory = supplies.directory()
        number = int(directory.name)
        moved = directory.with_name(f"moved-{number}")
        if path.traits.moves_directories:
            directory.rename(moved)
            assert not directory.exists()
        else:
            with pytest.raises(OSError) as caught:
                directory.rename(moved)
            assert caught.value.errno == errno.EXDEV
            assert not moved.exists()
            subprocess.run(["mv", directory, moved], check=True)  # copies it
        assert (moved / "a").read_text() == f"a in {number}\n"
        assert (moved / "sub/b").read_text() == f"b in {number}\n"
        directory.mkdir()
        assert os.listdir(directory) == []

    def test_directories_of_the_scratch_layer_move(self, supplies: Supplies) -> None:
        new = supplies.directory() / "new"
        (new / "inside").mkdir(parents=True)
        emptied = supplies.directory()
        shutil.rmtree(emptied)
        new.rename(emptied)
        assert os.listdir(emptied) == ["inside"]

    def test_what_is_removed_stays_removed(self, supplies: Supplies) -> None:
        directory = supplies.directory()
        (directory / "sub/b").unlink()
        assert os.listdir(directory / "sub") == []
        (directory / "sub").rmdir()
        assert os.listdir(directory) == ["a"]
        with pytest.raises(OSError) as caught:
            directory.rmdir()
        assert caught.value.errno == errno.ENOTEMPTY
        (directory / "sub").mkdir()
        (directory / "a").unlink()
        (directory / "a").mkdir()
        assert os.listdir(directory / "sub") == os.listdir(directory / "a") == []
        shutil.rmtree(directory)
        directory.write_text("a file now")
        assert directory.read_text() == "a file now"

    def test_what_a_layer_hides_does_not_come_back(self, mounted: Path) -> None:
        merged = mounted / "merged"
        assert sorted(os.listdir(merged / "opaque")) == ["above", "deep"]
        (merged / "opaque/below").write_text("new")
        (merged / "gone").write_text("new")
        assert (merged / "opaque/below").read_text() == (merged / "gone").read_text() == "new"
        (merged / "removed").mkdir()
        assert os.listdir(merged / "removed") == []
        shutil.rmtree(merged / "nested")
        (merged / "nested/a").mkdir(parents=True)
        assert os.listdir(merged / "nested/a") == []
        (merged / "changed").unlink()
        assert not (merged / "changed").exists()

    def test_a_large_merged_directory_can_be_removed(self, mounted: Path) -> None:
        subprocess.run(["rm", "-r", mounted / "listed"], check=True)
        assert not (mounted / "listed").exists()
        (mounted / "listed").mkdir()
        assert os.listdir(mounted / "listed") == []
        assert len(os.listdir(mounted / "listed-in-one")) == len(LISTED)

    def test_new_names_for_old_files(self, supplies: Supplies) -> None:
        path = supplies.chunked()
        content = supplies.content(path)
        new = supplies.directory() / "new"
        new.hardlink_to(path)
        assert path.stat().st_nlink == new.stat().st_nlink == 2
        assert new.read_bytes() == content
        with new.open("ab") as file:
            file.write(b"more")
        assert path.read_bytes() == content + b"more"
        path.unlink()
        assert (new.read_bytes(), new.stat().st_nlink) == (content + b"more", 1)

    def test_packages_are_replaced_as_dpkg_does(self, supplies: Supplies) -> None:
        """A backup name for the old file, the new one renamed over it, the backup removed."""
        path = supplies.file(size=5000)
        backup, new = path.with_suffix(".dpkg-tmp"), path.with_suffix(".dpkg-new")
        new.write_text("new version")
        backup.hardlink_to(path)
        new.rename(path)
        assert path.read_text() == "new version"
        assert backup.read_bytes() == supplies.content(path)
        backup.unlink()
        assert path.read_text() == "new version"
