"""Layers of an engine on a real file system: unpacking hostile archives, differences, mounts, what a crash leaves."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.enginelayers import BASE, adding, archive_of, fill, work_in
from tests.support.tars import END, contents, entries, member, pax
from tests.support.tools import need_root

from mica import linux
from mica.engine.layers import EngineLayers, open_layers
from mica.engine.unions import AufsUnion, OverlayUnion
from mica.engine.unpack import unpack_layer
from mica.engine.whiteouts import AufsWhiteouts, OverlayWhiteouts, Whiteouts
from mica.errors import NotFoundError, UserError
from mica.files import owned_fd
from mica.layers.provider import LayerProvider
from mica.layers.stack import LayerStack
from mica.providers.external import ExternalProvider
from mica.tarstream import TarLimits
from mica.thin.descriptor import ThinDescriptor

pytestmark = pytest.mark.system
FQRN = "layers.example.org"


@pytest.fixture(autouse=True)
def root() -> None:
    need_root()


# Unpacking


def unpacked(tmp_path: Path, archive: bytes, whiteouts: Whiteouts | None = None, **limits: int) -> Path:
    target = tmp_path / "target"
    target.mkdir()
    unpack_layer(io.BytesIO(archive), target, whiteouts or OverlayWhiteouts(), limits=TarLimits(**limits))
    return target


def test_everything_that_a_tree_can_have(tmp_path: Path) -> None:
    xattrs = pax([(b"SCHILY.xattr.user.name", b"value"), (b"SCHILY.xattr.trusted.overlay.redirect", b"/etc")])
    archive = archive_of(
        adding("d", tarfile.DIRTYPE, mode=0o1770, uid=5, gid=6),
        adding("d/file", data=b"content", mode=0o4755, uid=7, gid=8),
        adding("hard", tarfile.LNKTYPE, link="d/file"),
        adding("link", tarfile.SYMTYPE, link="/etc/passwd"),
        adding("fifo", tarfile.FIFOTYPE),
        adding("implied/deep/file", data=b"x"),
    )[: -10240 % 512 or None]
    archive = archive.rstrip(b"\0")
    archive += bytes(-len(archive) % 512) + xattrs + member(b"attributed", b"y") + END
    target = unpacked(tmp_path, archive)
    status = (target / "d/file").stat()
    assert (status.st_mode, status.st_uid, status.st_gid, status.st_nlink) == (0o104755, 7, 8, 2)
    assert status.st_mtime == (target / "d").stat().st_mtime == 1_600_000_000
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o1770
    assert os.readlink(target / "link") == "/etc/passwd"
    assert stat.S_ISFIFO((target / "fifo").stat().st_mode)
    assert stat.S_IMODE((target / "implied").stat().st_mode) == 0o755
    assert os.listxattr(target / "attributed") == ["user.name"]


def test_zeros_become_holes(tmp_path: Path) -> None:
    target = unpacked(tmp_path, archive_of(adding("sparse", data=bytes(8 << 20) + b"end")))
    status = (target / "sparse").stat()
    assert status.st_size == (8 << 20) + 3
    assert status.st_blocks * 512 < 1 << 20
    assert (target / "sparse").read_bytes()[-3:] == b"end"


WHITEOUTS = archive_of(
    adding(".wh.gone"),
    adding("d/.wh..wh..opq"),
    adding("d/inside"),
    adding("both", data=b"x"),
    adding(".wh.both"),
    adding(".wh.dir"),
    adding("dir/file"),
    adding(".wh..wh.plnk/1.2", data=b"linked"),
    adding("by-aufs", tarfile.LNKTYPE, link=".wh..wh.plnk/1.2"),
)


def test_whiteouts_for_overlayfs(tmp_path: Path) -> None:
    target = unpacked(tmp_path, WHITEOUTS)
    status = (target / "gone").lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0
    for name in ("d", "dir"):
        assert os.getxattr(target / name, "trusted.overlay.opaque") == b"y"
    assert (target / "both").read_bytes() == b"x"
    assert (target / "by-aufs").read_bytes() == b"linked"
    assert sorted(os.listdir(target)) == ["both", "by-aufs", "d", "dir", "gone"]


@pytest.mark.parametrize("target", ["d", "/d", "nowhere", "file"])
@pytest.mark.parametrize("name", ["d/sub/.wh..wh.aufs", "d/sub/deeper"])
def test_what_a_link_replaced_is_not_looked_for(tmp_path: Path, name: str, target: str) -> None:
    target_tree = unpacked(
        tmp_path,
        archive_of(
            adding("file"),
            adding("d/sub", tarfile.DIRTYPE),
            adding(name, tarfile.DIRTYPE),
            adding("d", tarfile.SYMTYPE, link=target),
        ),
    )
    assert os.readlink(target_tree / "d") == target


def test_whiteouts_that_hide_nothing_are_not_listed(tmp_path: Path) -> None:
    upper = unpacked(tmp_path, archive_of(adding("only/.wh.gone"), adding("only/x"), adding("both/.wh.gone")))
    lower, merged = tmp_path / "lower", tmp_path / "merged"
    (lower / "both").mkdir(parents=True)
    (lower / "both/gone").touch()
    merged.mkdir()
    subprocess.run(["mount", "-t", "overlay", "-o", f"lowerdir={upper}:{lower}", "overlay", merged], check=True)
    try:
        assert os.listdir(merged / "only") == ["x"]
        assert os.listdir(merged / "both") == []
    finally:
        subprocess.run(["umount", merged], check=True)


def test_whiteouts_for_aufs(tmp_path: Path) -> None:
    target = unpacked(tmp_path, WHITEOUTS, AufsWhiteouts())
    assert sorted(os.listdir(target)) == [".wh.gone", "both", "by-aufs", "d", "dir"]
    assert (target / ".wh.gone").is_file()
    assert (target / "d/.wh..wh..opq").is_file()
    assert (target / "dir/.wh..wh..opq").is_file()


KINDS_OF_SIGNS: list[Whiteouts] = [OverlayWhiteouts(), AufsWhiteouts()]


@pytest.mark.parametrize("signs", KINDS_OF_SIGNS, ids=["overlay", "aufs"])
@pytest.mark.parametrize("before", [True, False], ids=["whiteout-first", "whiteout-last"])
@pytest.mark.parametrize(
    ("entry", "is_directory"),
    [
        (adding("x", data=b"x"), False),
        (adding("x", tarfile.SYMTYPE, link="other"), False),
        (adding("x", tarfile.LNKTYPE, link="other"), False),
        (adding("x", tarfile.FIFOTYPE), False),
        (adding("x", tarfile.DIRTYPE), True),
        (adding("x/file"), True),
        (adding("x/deep/file"), True),
    ],
    ids=["file", "symlink", "hardlink", "fifo", "directory", "implied", "implied-deep"],
)
def test_an_entry_beats_a_whiteout_of_its_name(
    tmp_path: Path, signs: Whiteouts, entry: Callable[[tarfile.TarFile], None], *, before: bool, is_directory: bool
) -> None:
    members = [adding(".wh.x"), entry] if before else [entry, adding(".wh.x")]
    target = unpacked(tmp_path, archive_of(adding("other"), *members), signs)
    names = sorted(os.listdir(target))
    assert names == ["other", "x"]
    assert [signs.removed_name(name.encode(), (target / name).lstat()) for name in names] == [None, None]
    assert (target / "x").is_dir() == is_directory
    if is_directory:
        # What lower layers have in a directory of that name went with it.
        with owned_fd(os.open(target / "x", os.O_RDONLY)) as fd:
            assert signs.hides_below(fd)


def test_a_device_that_is_no_sign_of_the_union(tmp_path: Path) -> None:
    target = unpacked(tmp_path, archive_of(adding("device", tarfile.CHRTYPE)), AufsWhiteouts())
    assert (target / "device").lstat().st_rdev == 0
    assert stat.S_ISCHR((target / "device").lstat().st_mode)


def test_names_that_aufs_cannot_use(tmp_path: Path) -> None:
    archive = archive_of(adding("d/" + "x" * 242, data=b"x"))
    assert os.listdir(unpacked(tmp_path, archive, AufsWhiteouts()) / "d") == ["x" * 242]
    (tmp_path / "more").mkdir()
    with pytest.raises(UserError, match="a name of 243 bytes; AUFS can use 242"):
        unpacked(tmp_path / "more", archive_of(adding("d/" + "x" * 243)), AufsWhiteouts())


def test_the_last_member_of_a_name_stays(tmp_path: Path) -> None:
    target = unpacked(
        tmp_path,
        archive_of(
            adding("a", tarfile.DIRTYPE), adding("a/deep/file"), adding("a", data=b"now a file"), adding("b"),
            adding("b", tarfile.DIRTYPE), adding("b/c"), adding("b", tarfile.DIRTYPE, mode=0o700),
        ),
    )  # fmt: skip
    assert (target / "a").read_bytes() == b"now a file"
    assert (target / "b/c").exists()
    assert sorted(os.listdir(target)) == ["a", "b"]


@pytest.mark.parametrize("target", ["usr", "/lower/../usr/.", "hop", "../../usr"])
def test_a_link_of_the_archive_may_lead_to_what_it_does_not_have(tmp_path: Path, target: str) -> None:
    links = (adding("hop", tarfile.SYMTYPE, link="/usr"), adding("x", tarfile.SYMTYPE, link=target))
    archive = archive_of(*links, adding("x/new"), adding("x/deep/.wh.gone"), adding("x/deep/newer"))
    tree = unpacked(tmp_path, archive)
    assert sorted(path.relative_to(tree).as_posix() for path in (tree / "usr").rglob("*")) == [
        "usr/deep", "usr/deep/gone", "usr/deep/newer", "usr/new",
    ]  # fmt: skip
    assert sorted(os.listdir(tree)) == ["hop", "usr", "x"]


def test_links_of_the_archive_lead_nowhere_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    up = "../" * 20
    target = unpacked(
        tmp_path,
        archive_of(
            adding("absolute", tarfile.SYMTYPE, link=str(outside)),
            adding("relative", tarfile.SYMTYPE, link=f"{up}{outside}"),
            adding("top", tarfile.SYMTYPE, link="/"),
            adding(str(outside)[1:], tarfile.DIRTYPE),
            adding("absolute/one", data=b"1"),
            adding("relative/two", data=b"2"),
            adding("top/three", data=b"3"),
            adding("absolute/victim", data=b"mine"),
        ),
    )
    inside = target / str(outside)[1:]
    assert sorted(os.listdir(inside)) == ["one", "two", "victim"]
    assert (target / "three").read_bytes() == b"3"
    assert os.listdir(outside) == ["victim"]
    assert (outside / "victim").read_bytes() == b"untouched"


@pytest.mark.parametrize(
    ("archive", "sentence"),
    [
        (archive_of(adding("../x")), r"has '\.\.' in its path"),
        (archive_of(adding("a/../../x")), r"has '\.\.' in its path"),
        (archive_of(adding("x", tarfile.LNKTYPE, link="../../etc/passwd")), r"has '\.\.' in its path"),
        (archive_of(adding("x", tarfile.LNKTYPE, link="/etc/passwd")), "is no earlier file"),
        (archive_of(adding("x", tarfile.CHRTYPE)), "character device 0:0"),
        (archive_of(adding("file"), adding("file/below")), "Cannot unpack 'file/below'"),
        (archive_of(adding(".wh.")), "whiteout that names no file"),
        (archive_of(adding(".wh...")), "whiteout that names no file"),
        (archive_of(adding(".wh.d/x")), "lies below a whiteout"),
        (archive_of(adding("d/.wh..wh..opq/x")), "lies below a whiteout"),
        (archive_of(adding("a", tarfile.SYMTYPE, link="a"), adding("a/x")), "too many links"),
        (archive_of(adding(".", data=b"x")), "would replace the root directory"),
        (archive_of(adding("x" * 256)), "255 bytes|too long"),
        (b"nonsense" * 1000, "checksum|archive"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, archive: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        unpacked(tmp_path, archive)


def test_limits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than 3 members"):
        unpacked(tmp_path, archive_of(*(adding(str(number)) for number in range(4))), max_entries=3)


# Layers


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[EngineLayers]:
    with open_layers(tmp_path / "home", OverlayUnion(), ExternalProvider(tmp_path / "cvmfs")) as layers:
        yield layers
        layers.unmount_all()


def test_a_difference_goes_into_an_archive_and_comes_back(layers: EngineLayers) -> None:
    fill(layers, "base", None, BASE)
    layers.create("top", "base", is_writable=True)
    merged = layers.mount("top")
    assert stat.S_IMODE(merged.stat().st_mode) == 0o711
    assert merged.stat().st_uid == 3
    work_in(merged)
    with layers.diff("top", "base") as pieces:
        archive = b"".join(pieces)
    with layers.diff("top", "base") as pieces:
        assert b"".join(pieces) == archive
    names = [entry.name for entry in entries(archive)]
    assert names == sorted(names, key=lambda name: name.replace(b".wh..wh..opq", b"").replace(b".wh.", b"").split(b"/"))
    assert {b"d/.wh.a", b"o/.wh..wh..opq", b".wh.m"} <= set(names)
    assert (b"moved/deep/file", b"deep") in contents(archive)
    changes = {(change.path, change.kind.name) for change in layers.changes("top", "base")}
    assert changes >= {
        (b"d", "MODIFIED"), (b"d/a", "DELETED"), (b"d/b", "MODIFIED"), (b"moved/deep/file", "ADDED"), (b"m", "DELETED"),
        (b"o/hidden", "DELETED"),
    }  # fmt: skip
    fill(layers, "committed", "base", archive)
    other = layers.mount("committed")
    seen = [sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) for tree in (merged, other)]
    assert seen[0] == seen[1]
    assert os.getxattr(other / "link", "user.x") == b"1"
    assert (other / "d/b").stat().st_uid == 9
    assert layers.diff_size("top", "base") == 100 + 3 + 4


def external_thin(tmp_path: Path) -> bytes:
    """A thin layer whose only real one is BASE, in a directory of another client."""
    tree = tmp_path / "cvmfs" / FQRN / "layer"
    tree.mkdir(parents=True)
    unpack_layer(io.BytesIO(BASE), tree, OverlayWhiteouts())
    layer = f'{{"digest": "{"0" * 64}", "url": "cvmfs://{FQRN}/layer"}}'
    document = f'{{"version": "1.0", "origin": "x", "layers": [{layer}]}}'
    return archive_of(adding("thin.json", data=document.encode()))


def test_a_thin_layer_stands_for_others(layers: EngineLayers, tmp_path: Path) -> None:
    fill(layers, "thin", None, external_thin(tmp_path))
    layers.create("top", "thin", is_writable=True)
    merged = layers.mount("top")
    assert sorted(os.listdir(merged)) == ["d", "m", "o"]
    assert (stat.S_IMODE(merged.stat().st_mode), merged.stat().st_uid) == (0o711, 3)
    # An engine reads it again when it pushes.
    assert sorted(os.listdir(layers.mount("thin"))) == ["d", "m", "o", "thin.json"]
    work_in(merged)
    with layers.diff("top", "thin") as pieces:
        assert (b"moved/deep/file", b"deep") in contents(b"".join(pieces))
    assert layers.is_on_thin("top")
    assert not layers.is_on_thin("thin")
    with layers.diff("thin", None) as pieces:
        assert [name for name, _ in contents(b"".join(pieces))] == [b"thin.json"]


@dataclasses.dataclass
class CountingProvider:
    """Of another client's layers; counts how often they are obtained."""

    provider: LayerProvider
    obtained: int = 0

    def check(self, descriptor: ThinDescriptor) -> None:
        self.provider.check(descriptor)

    @contextlib.contextmanager
    def layers(self, descriptor: ThinDescriptor) -> Iterator[LayerStack]:
        self.obtained += 1
        with self.provider.layers(descriptor) as layers:
            yield layers


def test_each_call_obtains_the_layers_of_a_thin_image_once(tmp_path: Path) -> None:
    """A node goes through all of an image's metadata for each time."""
    provider = CountingProvider(ExternalProvider(tmp_path / "cvmfs"))
    with open_layers(tmp_path / "home", OverlayUnion(), provider) as layers:

        def obtained_by(call: Callable[[], object]) -> int:
            before = provider.obtained
            call()
            return provider.obtained - before

        def archive_of_top() -> None:
            with layers.diff("top", "thin") as pieces:
                assert b"".join(pieces)

        assert obtained_by(lambda: fill(layers, "thin", None, external_thin(tmp_path))) == 0
        assert obtained_by(lambda: layers.describe("thin")) == 0
        assert obtained_by(lambda: layers.changes("thin", None)) == 0
        assert obtained_by(lambda: layers.create("top", "thin", is_writable=True)) == 1
        assert obtained_by(lambda: work_in(layers.mount("top"))) == 1
        assert obtained_by(lambda: layers.mount("top")) == 0
        assert obtained_by(archive_of_top) == 0
        assert obtained_by(lambda: layers.changes("top", "thin")) == 1
        layers.unmount("top")
        layers.unmount("top")
        assert obtained_by(archive_of_top) == 1
        assert obtained_by(lambda: layers.changes("top", "thin")) == 1
        implied = archive_of(adding("d/more/file"))
        assert obtained_by(lambda: fill(layers, "more", "thin", implied)) == 1


@pytest.mark.parametrize("more", ["other", "dir/"])
def test_a_descriptor_beside_anything_else_is_a_file(layers: EngineLayers, tmp_path: Path, more: str) -> None:
    kind = tarfile.DIRTYPE if more.endswith("/") else tarfile.REGTYPE
    fill(layers, "base", None, archive_of(adding("thin.json", data=b"{}"), adding(more, kind)))
    fill(layers, "upper", "base", archive_of(adding("thin.json", data=b"no JSON")))
    assert (layers.mount("upper") / "thin.json").read_bytes() == b"no JSON"


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (b"no JSON", "is not JSON"),
        (b"{}", "is not one of 1.x"),
        (b'{"version": "2.0", "layers": []}', "is not one of 1.x"),
        (b'{"version": "1.0", "layers": []}', "names no layers"),
    ],
)
def test_wrong_descriptors_fill_nothing(layers: EngineLayers, document: bytes, sentence: str) -> None:
    layers.create("thin", None, is_writable=False)
    with pytest.raises(UserError, match=sentence):
        layers.apply("thin", io.BytesIO(archive_of(adding("thin.json", data=document))))
    assert os.listdir(layers.directory("thin").diff) == []
    # The other way: by writing into the mounted layer.
    (layers.mount("thin") / "thin.json").write_bytes(document)
    layers.create("top", "thin", is_writable=False)
    with pytest.raises(UserError, match=sentence):
        layers.mount("top")


def test_a_layer_that_is_not_there(layers: EngineLayers, tmp_path: Path) -> None:
    fill(layers, "thin", None, external_thin(tmp_path))
    shutil.rmtree(tmp_path / "cvmfs")
    sentence = r"Repository layers\.example\.org is not mounted below"
    # Engines forget a container's layer that was made and then cannot be mounted.
    with pytest.raises(NotFoundError, match=sentence):
        layers.create("top", "thin", is_writable=True)
    assert not layers.exists("top")
    layers.create("top", "thin", is_writable=False)
    with pytest.raises(NotFoundError, match=sentence):
        layers.mount("top")


def test_a_layer_that_is_a_link_of_the_repository(layers: EngineLayers, tmp_path: Path) -> None:
    fill(layers, "thin", None, external_thin(tmp_path))
    (tree,) = (tmp_path / "cvmfs/layers.example.org").iterdir()
    (tmp_path / "host").mkdir()
    (tmp_path / "host/secret").write_text("of the host")
    tree.rename(tmp_path / "before")
    tree.symlink_to(tmp_path / "host")
    layers.create("top", "thin", is_writable=False)
    with pytest.raises(UserError, match="is not a directory, or has a link in its path"):
        layers.mount("top")


def test_an_archive_that_is_cut_leaves_nothing(layers: EngineLayers, tmp_path: Path) -> None:
    layers.create("one", None, is_writable=False)
    for cut in (100, 700, 1600):
        with pytest.raises(UserError, match="truncated"):
            layers.apply("one", io.BytesIO(BASE[:cut]))
        assert os.listdir(layers.directory("one").diff) == []
    assert [path.name for path in layers.home.iterdir() if path.name.startswith(".")] == []
    layers.apply("one", io.BytesIO(BASE))
    with pytest.raises(UserError, match="fill layer one"):
        layers.apply("one", io.BytesIO(BASE))
    assert sorted(os.listdir(layers.directory("one").diff)) == ["d", "m", "o"]


def test_counts_of_mounts(layers: EngineLayers) -> None:
    fill(layers, "base", None, BASE)
    layers.create("top", "base", is_writable=True)
    layers.unmount("top")  # never mounted
    merged = layers.mount("top")
    assert layers.mount("top") == merged
    layers.unmount("top")
    assert linux.mounted_device(merged) is not None
    layers.unmount("top")
    assert linux.mounted_device(merged) is None
    layers.unmount("top")
    layers.mount("top")
    layers.remove("top")
    assert not merged.exists()
    layers.remove("top")
    layers.unmount("top")
    with pytest.raises(NotFoundError, match="There is no layer top"):
        layers.mount("top")


def test_three_hundred_layers(layers: EngineLayers) -> None:
    for number in range(310):
        fill(layers, f"l{number}", f"l{number - 1}" if number else None, archive_of(adding(f"f{number}")))
    layers.create("top", "l309", is_writable=True)
    merged = layers.mount("top")
    assert len(os.listdir(merged)) == 310
    (merged / "new").touch()


def test_every_mount_can_be_written_to_until_others_build_on_it(layers: EngineLayers) -> None:
    fill(layers, "base", None, BASE)
    layers.create("step", "base", is_writable=False)
    (layers.mount("step") / "written").touch()
    layers.unmount("step")
    layers.create("next", "step", is_writable=False)
    with pytest.raises(OSError, match="Read-only file system"):
        (layers.mount("step") / "more").touch()
    assert (layers.mount("next") / "written").exists()


def test_directories_that_an_archive_did_not_bring_are_like_those_below(layers: EngineLayers) -> None:
    directories = {"tmp": 0o1777, "srv": 0o2750, "hidden": 0o1777, "brought": 0o1777}
    fill(layers, "base", None, archive_of(*(adding(name, tarfile.DIRTYPE, mode=mode, uid=5, gid=6)
                                            for name, mode in directories.items())))  # fmt: skip
    upper = (
        adding("tmp/deep/x"), adding("srv/x"), adding(".wh.hidden"), adding("hidden/x"), adding("brought/x"),
        adding("brought", tarfile.DIRTYPE, mode=0o700),
    )  # fmt: skip
    fill(layers, "upper", "base", archive_of(*upper))
    fill(layers, "top", "upper", archive_of(adding("tmp/y"), adding("hidden/y")))
    merged = layers.mount("top")
    seen = {name: (merged / name).stat() for name in (*directories, "tmp/deep")}
    assert {name: (stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid) for name, one in seen.items()} == {
        "tmp": (0o1777, 5, 6), "srv": (0o2750, 5, 6), "hidden": (0o755, 0, 0), "brought": (0o700, 0, 0),
        "tmp/deep": (0o755, 0, 0),
    }  # fmt: skip


def test_an_opaque_root_hides_all_below(layers: EngineLayers) -> None:
    fill(layers, "base", None, BASE)
    fill(layers, "opaque", "base", archive_of(adding(".wh..wh..opq"), adding("only")))
    # Also in its own mount, as long as nothing is made on it and it can be written to.
    assert os.listdir(layers.mount("opaque")) == ["only"]
    layers.unmount("opaque")
    layers.create("top", "opaque", is_writable=True)
    assert os.listdir(layers.mount("top")) == ["only"]
    assert {(change.path, change.kind.name) for change in layers.changes("opaque", "base")} == {
        (b"d", "DELETED"), (b"m", "DELETED"), (b"o", "DELETED"), (b"only", "ADDED"),
    }  # fmt: skip
    with layers.diff("opaque", "base") as pieces:
        archive = b"".join(pieces)
    assert [entry.name for entry in entries(archive)] == [b".wh..wh..opq", b"only"]
    fill(layers, "again", "base", archive)
    layers.create("top-again", "again", is_writable=True)
    assert os.listdir(layers.mount("top-again")) == ["only"]


SIGNED = archive_of(
    adding("d/.wh.a"),
    adding(".wh.m"),
    adding("m/new", data=b"under a name that was removed before"),
    adding("o/.wh..wh..opq"),
    adding("o/shown"),
)


@pytest.mark.parametrize("signs", KINDS_OF_SIGNS, ids=["by-mica", "by-stock-tools"])
@pytest.mark.parametrize("times", [1, 2])
def test_trees_of_a_repository_are_read_whoever_made_them(
    layers: EngineLayers, tmp_path: Path, signs: Whiteouts, times: int
) -> None:
    """The stock tools publish layers as they are in their archives."""
    documents = []
    for number, archive in enumerate((BASE, SIGNED)):
        tree = tmp_path / "cvmfs" / FQRN / str(number)
        tree.mkdir(parents=True)
        unpack_layer(io.BytesIO(archive), tree, signs)
        documents.append({"digest": f"{number:064x}", "url": f"cvmfs://{FQRN}/{number}"})
    document = {"version": "1.0", "origin": "x", "layers": documents * times}
    fill(layers, "thin", None, archive_of(adding("thin.json", data=json.dumps(document).encode())))
    fill(layers, "base", None, BASE)
    fill(layers, "signed", "base", SIGNED)
    seen = []
    for below in ("thin", "signed"):
        layers.create(f"on-{below}", below, is_writable=True)
        merged = layers.mount(f"on-{below}")
        seen.append(sorted((str(path.relative_to(merged)), path.lstat().st_mode) for path in merged.rglob("*")))
    assert seen[0] == seen[1]
    assert [name for name, _ in seen[0]] == ["d", "d/b", "m", "m/new", "o", "o/shown"]


def test_a_home_belongs_to_one_kind_of_union(tmp_path: Path) -> None:
    home, provider = tmp_path / "home", ExternalProvider(tmp_path)
    with open_layers(home, AufsUnion(), provider) as layers:
        fill(layers, "base", None, BASE)
    sentence = "were made for aufs and cannot be used with overlay"
    with pytest.raises(UserError, match=sentence), open_layers(home, OverlayUnion(), provider):
        pass
    with open_layers(home, AufsUnion(), provider) as layers:
        layers.remove("base")
    # Without layers there is nothing that could be misread.
    with open_layers(home, OverlayUnion(), provider) as layers:
        fill(layers, "base", None, BASE)
    sentence = "were made for overlay and cannot be used with aufs"
    with pytest.raises(UserError, match=sentence), open_layers(home, AufsUnion(), provider):
        pass


def test_what_a_predecessor_left(tmp_path: Path) -> None:
    home, provider = tmp_path / "home", ExternalProvider(tmp_path)
    with open_layers(home, OverlayUnion(), provider) as layers:
        fill(layers, "base", None, BASE)
        for name in ("used", "counted", "nameless", "mounted"):
            layers.create(name, "base", is_writable=True)
        used, counted = layers.mount("used"), layers.mount("counted")
        # As if it died between steps: a mount nobody counted, a count whose mount is gone, a record without a name.
        merged = layers.mount("mounted")
        layers._store.forget_mounts("mounted")
        linux.umount2(counted)
        shutil.rmtree(home / "nameless")
        (home / ".new-1" / "diff").mkdir(parents=True)
        (home / ".old-2" / "diff" / "x").mkdir(parents=True)
    with open_layers(home, OverlayUnion(), provider) as layers:
        assert linux.mounted_device(used) is not None
        assert linux.mounted_device(merged) is None
        assert not layers.exists("nameless")
        assert sorted(path.name for path in home.iterdir() if path.is_dir()) == ["base", "counted", "mounted", "used"]
        layers.unmount("used")
        assert linux.mounted_device(used) is None
        layers.mount("counted")
        layers.unmount("counted")
        assert linux.mounted_device(counted) is None


def test_a_parent_that_others_need_stays(layers: EngineLayers) -> None:
    fill(layers, "base", None, BASE)
    layers.create("top", "base", is_writable=True)
    with pytest.raises(UserError, match="is the parent of others"):
        layers.remove("base")
    layers.mount("top")
    with pytest.raises(UserError, match="has another parent than none"), layers.diff("top", None):
        pass
    layers.remove("base", with_children=True)
    assert layers.count == 0
