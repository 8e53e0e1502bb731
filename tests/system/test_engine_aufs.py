"""Layers of an engine on AUFS, judged by what a real AUFS answered (support/aufs.py) and by overlayfs."""

import errno
import io
import json
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.aufs import AufsKernel, Tree, as_user, dump, entry_of, full, has_answers
from tests.support.enginelayers import BASE, adding, archive_of, fill, work_in
from tests.support.tars import contents, entries
from tests.support.tools import need_root

from mica import linux
from mica.engine.aufs import plan_aufs
from mica.engine.layers import EngineLayers, open_layers
from mica.engine.unions import AufsUnion, OverlayUnion, Union
from mica.engine.unpack import unpack_layer
from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.errors import UserError
from mica.providers.external import ExternalProvider

pytestmark = pytest.mark.system
FQRN = "layers.example.org"


@pytest.fixture
def kernel(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[AufsKernel]:
    need_root()
    if not has_answers(request.node.name):
        pytest.skip("needs a kernel with AUFS, or the record of one: make kernels AUFS=…")
    kernel = AufsKernel(tmp_path, request.node.name)
    yield kernel
    kernel.close()


@contextmanager
def opened(home: Path, union: Union, tmp_path: Path) -> Iterator[EngineLayers]:
    with open_layers(home, union, ExternalProvider(tmp_path / "cvmfs")) as layers:
        try:
            yield layers
        finally:
            layers.unmount_all()


@pytest.fixture
def layers(tmp_path: Path, kernel: AufsKernel) -> Iterator[EngineLayers]:
    with opened(tmp_path / "aufs", AufsUnion(kernel.mount, kernel.bring_up), tmp_path) as layers:
        yield layers


@pytest.fixture
def judge(tmp_path: Path, kernel: AufsKernel) -> Iterator[EngineLayers]:
    """The same on overlayfs."""
    with opened(tmp_path / "overlay", OverlayUnion(), tmp_path) as layers:
        yield layers


def work(kernel: AufsKernel, layers: EngineLayers, layer_id: str, program: Any, *, name: str = "work") -> Any:
    directory = layers.directory(layer_id)
    return kernel.work(f"{name} in {layer_id}", directory.merged, directory.diff, program)


def shown(tree: Tree) -> Tree:
    """Without what only one of two unions keeps or shows: that names are one file, once it was copied up, and the
    attributes by which overlayfs is steered, which AUFS shows to root in trees that mica made."""
    found = {}
    for name, (*most, attributes, _) in full(tree).items():
        kept = {key: value for key, value in attributes.items() if key.startswith("user.")}
        found[name] = entry_of(*most, kept)
    return found


def shown_below(tree: Tree) -> Tree:
    """Without the root, whose mode and owner a tree of a repository always has and an archive need not."""
    return {name: entry for name, entry in shown(tree).items() if name != "."}


def difference(layers: EngineLayers, layer_id: str, parent: str) -> bytes:
    with layers.diff(layer_id, parent) as pieces:
        return b"".join(pieces)


# Ordinary layers


def test_a_difference_is_the_one_of_overlayfs(layers: EngineLayers, judge: EngineLayers, kernel: AufsKernel) -> None:
    archives, trees = [], []
    for each in (layers, judge):
        fill(each, "base", None, BASE)
        each.create("top", "base", is_writable=True)
        merged = each.mount("top")
        if each is layers:
            work(kernel, each, "top", work_in)
        else:
            work_in(merged)
        archives.append(difference(each, "top", "base"))
        trees.append(shown(dump(merged)))
    assert trees[0] == trees[1]
    names = [[entry.name for entry in entries(archive)] for archive in archives]
    assert names[0] == names[1]
    assert contents(archives[0]) == contents(archives[1])
    changes = [each.changes("top", "base") for each in (layers, judge)]
    assert changes[0] == changes[1]
    assert layers.diff_size("top", "base") == judge.diff_size("top", "base")
    fill(layers, "committed", "base", archives[0])
    assert shown(dump(layers.mount("committed"))) == trees[0]


SIGNED = [
    BASE,
    archive_of(
        adding("d/.wh.a"),
        adding(".wh.m"),
        adding("m/new", data=b"under a name that was removed before"),
        adding(".wh.late"),
        adding("late/file"),
        adding("o/.wh..wh..opq"),
        adding("o/shown"),
        adding("e", tarfile.DIRTYPE, mode=0o700, uid=4),
        adding("e/x", data=b"x"),
        adding("file", data=b"1"),
        adding("turned/inside", data=b"1"),
    ),
    archive_of(
        adding("d/a", data=b"again"),
        adding("d/.wh.b"),
        adding(".wh.file"),
        adding("file", tarfile.DIRTYPE),
        adding("file/deep", data=b"2"),
        adding("turned", data=b"a file now"),
        adding(".wh.turned"),
        adding(".wh.e"),
        adding(".wh.nothing"),
    ),
]


def stacked(layers: EngineLayers, archives: list[bytes]) -> str:
    below = None
    for number, archive in enumerate(archives):
        fill(layers, f"l{number}", below, archive)
        below = f"l{number}"
    layers.create("top", below, is_writable=True)
    return "top"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_signs_of_layers_are_read(layers: EngineLayers, judge: EngineLayers, count: int) -> None:
    trees = [shown(dump(each.mount(stacked(each, SIGNED[:count])))) for each in (layers, judge)]
    assert trees[0] == trees[1]
    assert {1: "o/hidden", 2: "m/new", 3: "file/deep"}[count] in trees[0]


def test_an_opaque_root_hides_all_below(layers: EngineLayers, judge: EngineLayers) -> None:
    archives = [BASE, archive_of(adding(".wh..wh..opq"), adding("only")), archive_of(adding("more"))]
    for each in (layers, judge):
        assert {*dump(each.mount(stacked(each, archives)))} == {".", "only", "more"}


def test_a_read_only_union_refuses_to_be_written_to(layers: EngineLayers, kernel: AufsKernel) -> None:
    fill(layers, "base", None, BASE)
    fill(layers, "middle", "base", archive_of(adding("x")))
    layers.create("top", "middle", is_writable=True)
    layers.mount("middle")

    def write(merged: Path) -> str:
        with pytest.raises(OSError, match="Read-only") as caught:
            (merged / "new").touch()
        return errno.errorcode[caught.value.errno or 0]

    assert work(kernel, layers, "middle", write) == "EROFS"


def test_what_an_upper_directory_opens_is_open(layers: EngineLayers, kernel: AufsKernel) -> None:
    fill(layers, "base", None, archive_of(
        adding(".", tarfile.DIRTYPE, mode=0o755), adding("opened", tarfile.DIRTYPE, mode=0o700), adding("opened/x"),
        adding("closed", tarfile.DIRTYPE, mode=0o755), adding("closed/x"),
    ))  # fmt: skip
    fill(layers, "above", "base", archive_of(
        adding("opened", tarfile.DIRTYPE, mode=0o755), adding("opened/y"), adding("closed", tarfile.DIRTYPE, mode=0o700)
    ))  # fmt: skip
    layers.create("top", "above", is_writable=True)
    layers.mount("top")

    def look(merged: Path) -> dict[str, str]:
        told = {}
        # Nothing above the union stands in the way.
        fd = os.open(merged, os.O_RDONLY | os.O_DIRECTORY)
        with as_user(1000):
            for name in ("opened/x", "opened/y", "closed/x"):
                try:
                    os.close(os.open(name, os.O_RDONLY, dir_fd=fd))
                    told[name] = "open"
                except PermissionError:
                    told[name] = "closed"
        os.close(fd)
        return told

    assert work(kernel, layers, "top", look) == {"opened/x": "open", "opened/y": "open", "closed/x": "closed"}


def test_a_device_that_overlayfs_would_take_for_a_sign(layers: EngineLayers, kernel: AufsKernel) -> None:
    fill(layers, "base", None, BASE)
    layers.create("top", "base", is_writable=True)
    layers.mount("top")
    work(kernel, layers, "top", lambda merged: os.mknod(merged / "device", stat.S_IFCHR | 0o600))
    archive = difference(layers, "top", "base")
    assert [(entry.name, entry.device_major) for entry in entries(archive)] == [(b"device", 0)]
    fill(layers, "committed", "base", archive)
    layers.create("next", "committed", is_writable=True)
    status = (layers.mount("next") / "device").lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0


def test_names_of_one_file_stay_what_they_were_after_a_restart(layers: EngineLayers, kernel: AufsKernel) -> None:
    """AUFS changes a file of a lower layer under all its names, and forgets the names that nobody opened."""
    fill(layers, "base", None, archive_of(
        adding("d/a", data=b"1"), adding("d/b", tarfile.LNKTYPE, link="d/a"), adding("d/other", data=b"1"),
        adding("gone", data=b"1"), adding("e/left", tarfile.LNKTYPE, link="gone"),
        adding("alone"), adding("suid", data=b"1", mode=0o4755), adding("e/suid", tarfile.LNKTYPE, link="suid"),
    ))  # fmt: skip
    layers.create("top", "base", is_writable=True)
    layers.mount("top")

    def write(merged: Path) -> None:
        (merged / "d/a").write_bytes(b"2")
        (merged / "gone").write_bytes(b"by a name that is gone")
        (merged / "gone").unlink()
        os.chown(merged / "suid", 5, 5)
        (merged / "suid").chmod(0o4755)
        os.link(merged / "alone", merged / "linked")
        (merged / "alone").write_bytes(b"by the old name")

    directory = layers.directory("top")
    kernel.work("changes", directory.merged, directory.diff, write, is_looked_at=False)
    expected = {
        "d/a": "2", "d/b": "2", "d/other": "1", "e/left": "by a name that is gone", "suid": "1", "e/suid": "1",
        "alone": "by the old name", "linked": "by the old name",
    }  # fmt: skip
    fill(layers, "committed", "base", difference(layers, "top", "base"))
    layers.unmount("top")
    # What nobody changed is not copied.
    assert not (directory.diff / "d/other").exists()
    layers.create("next", "committed", is_writable=True)
    for merged in (layers.mount("top"), layers.mount("next")):
        shown = {name: entry for name, entry in full(dump(merged)).items() if entry[0] != "40755"}
        assert {name: entry[3] for name, entry in shown.items()} == expected
        assert [shown[name][:3] for name in ("suid", "e/suid")] == [["104755", 5, 5]] * 2
        assert [shown[name][5] for name in ("d/b", "linked", "suid")] == ["d/a", "alone", "e/suid"]
        assert {(merged / name).stat().st_nlink for name in ("d/a", "alone", "suid")} == {2}


def test_names_of_the_greatest_length(layers: EngineLayers, kernel: AufsKernel) -> None:
    name = "x" * AufsWhiteouts.name_max_bytes
    fill(layers, "base", None, archive_of(adding(f"d/{name}", data=b"read"), adding("e/x")))
    layers.create("top", "base", is_writable=True)
    layers.mount("top")

    def use(merged: Path) -> list[str]:
        told = [(merged / "d" / name).read_text()]
        (merged / "d" / name).unlink()
        (merged / "e" / name).touch()
        with pytest.raises(OSError, match="too long") as caught:
            (merged / "e" / f"{name}x").touch()
        return [*told, errno.errorcode[caught.value.errno or 0]]

    assert work(kernel, layers, "top", use) == ["read", "ENAMETOOLONG"]
    assert [entry.name for entry in entries(difference(layers, "top", "base"))] == [
        b"d/", f"d/.wh.{name}".encode(), b"e/", f"e/{name}".encode(),
    ]  # fmt: skip


# Mounts


@pytest.mark.parametrize("count", [1, 40, 41, 80, 126])
def test_as_many_layers_as_this_aufs_joins(layers: EngineLayers, count: int) -> None:
    merged = layers.mount(stacked(layers, [archive_of(adding(f"f{number}")) for number in range(count)]))
    assert sorted(os.listdir(merged)) == sorted(f"f{number}" for number in range(count))


def test_more_layers_than_this_aufs_joins(layers: EngineLayers) -> None:
    stacked(layers, [archive_of(adding(f"f{number}")) for number in range(127)])
    for _ in range(2):
        with pytest.raises(UserError, match="AUFS of this kernel cannot join 128 directories"):
            layers.mount("top")
        assert linux.mounted_device(layers.directory("top").merged) is None


def test_many_at_the_same_time(layers: EngineLayers, kernel: AufsKernel) -> None:
    fill(layers, "base", None, BASE)
    names = [f"top{number}" for number in range(16)]
    for name in names:
        layers.create(name, "base", is_writable=True)
    errors: list[BaseException] = []

    def mount(name: str) -> None:
        try:
            layers.mount(name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=mount, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    # AUFS makes this file with O_EXCL and removes its name a moment later.
    assert len(set(kernel.xinos)) == len(names)


def test_a_name_for_inode_numbers_that_is_taken(kernel: AufsKernel, tmp_path: Path) -> None:
    for name in ("layer", "upper", "target"):
        (tmp_path / name).mkdir()
    taken = tmp_path / "taken"
    taken.touch()
    plan = plan_aufs([tmp_path / "layer"], tmp_path / "upper", tmp_path / "target", xino=taken)
    with pytest.raises(UserError, match="File exists"):
        plan.mount(kernel.mount)
    assert linux.mounted_device(tmp_path / "target") is None


# Thin layers


def thin(tmp_path: Path, signs: Whiteouts, archives: list[bytes], *, times: int = 1) -> bytes:
    """A thin layer whose real ones are in a directory of another client, with the signs that somebody chose."""
    kind = type(signs).__name__.lower()
    layers = []
    for number, archive in enumerate(archives):
        tree = tmp_path / "cvmfs" / FQRN / kind / f"l{number}"
        if not tree.exists():
            tree.mkdir(parents=True)
            unpack_layer(io.BytesIO(archive), tree, signs)
        layers.append({"digest": f"{number:064x}", "url": f"cvmfs://{FQRN}/{kind}/l{number}"})
    document = {"version": "1.0", "origin": "x", "layers": layers * times}
    return archive_of(adding("thin.json", data=json.dumps(document).encode()))


SIGNS: list[Whiteouts] = [OverlayWhiteouts(), AufsWhiteouts()]


@pytest.mark.parametrize("signs", SIGNS, ids=["by-mica", "by-stock-tools"])
@pytest.mark.parametrize("times", [1, 2], ids=["", "twice"])
def test_trees_of_a_repository_are_read_whoever_made_them(
    layers: EngineLayers, judge: EngineLayers, tmp_path: Path, signs: Whiteouts, times: int
) -> None:
    expected = shown_below(dump(judge.mount(stacked(judge, SIGNED))))
    for each in (layers, judge):
        fill(each, "thin", None, thin(tmp_path, signs, SIGNED, times=times))
        each.create("container", "thin", is_writable=True)
        assert shown_below(dump(each.mount("container"))) == expected
        each.unmount("container")
        assert shown_below(dump(each.mount("container"))) == expected


@pytest.mark.parametrize("signs", SIGNS, ids=["by-mica", "by-stock-tools"])
def test_a_root_of_a_repository_hides_what_is_below(
    layers: EngineLayers, judge: EngineLayers, tmp_path: Path, signs: Whiteouts
) -> None:
    archives = [BASE, archive_of(adding(".wh..wh..opq"), adding("only")), archive_of(adding("more"))]
    for each in (layers, judge):
        fill(each, "thin", None, thin(tmp_path, signs, archives))
        each.create("container", "thin", is_writable=True)
        assert {*dump(each.mount("container"))} == {".", "only", "more"}


def test_a_thin_layer_that_was_mounted_by_itself_is_thin(
    layers: EngineLayers, kernel: AufsKernel, tmp_path: Path
) -> None:
    fill(layers, "thin", None, thin(tmp_path, OverlayWhiteouts(), [BASE]))
    for _ in range(2):
        merged = layers.mount("thin")
        # An engine reads it again when it pushes.
        assert sorted(os.listdir(merged)) == ["d", "m", "o", "thin.json"]
        work(kernel, layers, "thin", lambda _: None, name=f"nothing {_}")
        layers.unmount("thin")
    # What AUFS keeps in a writable branch is there.
    assert len(os.listdir(layers.directory("thin").diff)) > 1
    layers.create("container", "thin", is_writable=True)
    assert layers.is_on_thin("container")
    assert sorted(os.listdir(layers.mount("container"))) == ["d", "m", "o"]
    with layers.diff("thin", None) as pieces:
        assert [name for name, _ in contents(b"".join(pieces))] == [b"thin.json"]


def test_a_difference_on_a_thin_layer(layers: EngineLayers, kernel: AufsKernel, tmp_path: Path) -> None:
    fill(layers, "thin", None, thin(tmp_path, OverlayWhiteouts(), [BASE]))
    layers.create("top", "thin", is_writable=True)
    layers.mount("top")
    work(kernel, layers, "top", work_in)
    archive = difference(layers, "top", "thin")
    names = [entry.name for entry in entries(archive)]
    assert {b"d/.wh.a", b"o/.wh..wh..opq", b".wh.m"} <= set(names)
    assert (b"moved/deep/file", b"deep") in contents(archive)
