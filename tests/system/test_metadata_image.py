"""Metadata images judged by others: fsck.erofs, dump.erofs, and the kernel, entry by entry."""

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.erofs import fsck, mounted
from tests.support.imagetrees import CHUNK_LISTS, Entries, everything, expected_of, in_tree_order, random_tree, shown_by
from tests.support.tools import need, need_linux, need_root

from mica import linux
from mica.digest import Algorithm
from mica.files import owned_fd
from mica.metaimage.inode import Inode
from mica.metaimage.reader import read_image
from mica.metaimage.writer import write_image
from mica.repo.localname import LocalName
from mica.repo.objects import Compression, pack
from mica.unionsigns import OPAQUE

pytestmark = pytest.mark.system


def written(entries: Entries, path: Path) -> Path:
    with path.open("w+b") as file:
        write_image(entries, file, CHUNK_LISTS)
    return path


def differences(entries: Entries, root: Path) -> list[str]:
    expected, found = expected_of(entries), shown_by(root)
    told = [f"only here: {path!r}" for path in sorted(expected.keys() ^ found.keys())]
    for path in sorted(expected.keys() & found.keys()):
        told += [
            f"{path!r}: {name} is {theirs!r} and not {ours!r}"
            for name, ours, theirs in zip(expected[path]._fields, expected[path], found[path], strict=True)
            if ours != theirs
        ]
    return told[:20]


def test_a_tree_with_everything(tmp_path: Path) -> None:
    need_root()
    image = written(everything(), tmp_path / "image")
    assert fsck(image) == ""
    with mounted(image, tmp_path / "mount") as root:
        assert differences(everything(), root) == []


def test_dump_erofs_reads_the_superblock(tmp_path: Path) -> None:
    image = written(everything(), tmp_path / "image")
    dump = Path(need("fsck.erofs", "erofs-utils")).with_name("dump.erofs")
    done = subprocess.run([dump, "-s", image], capture_output=True, text=True, check=True)
    facts = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    files = {inode.group or path: path for path, inode in everything()}
    assert int(facts["Filesystem inode count"]) == len(files)
    assert (
        int(facts["Filesystem blocks"]) * 4096 <= image.stat().st_size < int(facts["Filesystem blocks"]) * 4096 + 4096
    )
    assert facts["Filesystem UUID"].strip() != "00000000-0000-0000-0000-000000000000"
    done = subprocess.run([dump, "-S", image], capture_output=True, text=True, check=True)
    assert "<E>" not in done.stdout + done.stderr


@pytest.mark.parametrize("seed", range(20))
def test_random_trees(seed: int, tmp_path: Path) -> None:
    need_root()
    entries = random_tree(seed)
    image = written(entries, tmp_path / "image")
    assert fsck(image) == ""
    with mounted(image, tmp_path / "mount") as root:
        assert differences(entries, root) == []
    with image.open("rb") as file:
        assert dict(read_image(file, "the image")).keys() == dict(entries).keys()


def test_a_directory_of_100_000(tmp_path: Path) -> None:
    """Every name is found, and what lies between two names is not."""
    need_root()
    names = [b"%07d" % number for number in range(0, 200_000, 2)]
    entries = in_tree_order({b"/many/" + name: Inode(stat.S_IFIFO | 0o600) for name in names})
    image = written(entries, tmp_path / "image")
    assert fsck(image) == ""
    with mounted(image, tmp_path / "mount") as root:
        many = os.fsencode(root) + b"/many"
        assert sorted(os.listdir(many)) == names
        for number in (0, 2, 99_998, 100_000, 199_996, 199_998, *range(0, 200_000, 346)):
            assert os.path.lexists(many + b"/%07d" % number)
            assert not os.path.lexists(many + b"/%07d" % (number + 1))


def test_a_tree_with_nothing(tmp_path: Path) -> None:
    need_root()
    entries = in_tree_order({})
    image = written(entries, tmp_path / "image")
    assert fsck(image) == ""
    with mounted(image, tmp_path / "mount") as root:
        assert differences(entries, root) == []


def test_overlayfs_finds_content_by_name_and_obeys_a_layer(tmp_path: Path) -> None:
    """Two layers over a directory of content: what a container sees."""
    need_root()
    need_linux(6, 5, "data-only layers")
    contents = {b"lower": b"from below\n", b"upper": b"from above\n" * 1000}
    store = tmp_path / "content"
    names = {key: stored(store, data) for key, data in contents.items()}

    def file(key: bytes) -> Inode:
        return Inode(stat.S_IFREG | 0o640, 5, 6, 7, 8, len(contents[key]), names[key], xattrs={b"user.key": key})

    lower = in_tree_order({
        b"/kept": file(b"lower"), b"/replaced": file(b"lower"), b"/gone": file(b"lower"),
        b"/opaque/gone": file(b"lower"), b"/merged/low": file(b"lower"), b"/empty": Inode(stat.S_IFREG | 0o600),
    })  # fmt: skip
    upper = in_tree_order({
        b"/replaced": file(b"upper"), b"/gone": Inode(stat.S_IFCHR), b"/merged/up": file(b"upper"),
        b"/opaque": Inode(stat.S_IFDIR | 0o700, xattrs={OPAQUE: b"y"}), b"/opaque/new": file(b"upper"),
    })  # fmt: skip
    images = [written(entries, tmp_path / name) for name, entries in (("upper", upper), ("lower", lower))]
    with (
        mounted(images[0], tmp_path / "m1") as top,
        mounted(images[1], tmp_path / "m2") as bottom,
        overlaid([top, bottom], store, tmp_path / "union") as union,
    ):
        found = {path.relative_to(union).as_posix(): path.read_bytes() for path in union.rglob("*") if path.is_file()}
        assert found == {
            "kept": contents[b"lower"], "replaced": contents[b"upper"], "merged/low": contents[b"lower"],
            "merged/up": contents[b"upper"], "opaque/new": contents[b"upper"], "empty": b"",
        }  # fmt: skip
        status = (union / "replaced").stat()
        assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (5, 6, 7 * 10**9 + 8)
        assert status.st_size == len(contents[b"upper"])
        assert os.listxattr(union / "replaced") == ["user.key"], "overlayfs hides its own"


def stored(directory: Path, data: bytes) -> LocalName:
    packed = pack(data, Algorithm.SHA1, Compression.ZLIB)
    name = LocalName(packed.digest, Compression.ZLIB, len(data))
    place = directory / str(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return name


@contextlib.contextmanager
def overlaid(layers: list[Path], content: Path, target: Path) -> Iterator[Path]:
    target.mkdir()
    with owned_fd(linux.fsopen("overlay")) as context:
        for layer in layers:
            linux.fsconfig_string(context, "lowerdir+", layer)
        linux.fsconfig_string(context, "datadir+", content)
        linux.fsconfig_string(context, "metacopy", "on")
        linux.fsconfig_create(context)
        with owned_fd(linux.fsmount(context, linux.MOUNT_ATTR_RDONLY)) as mount:
            linux.move_mount(mount, target)
    try:
        yield target
    finally:
        linux.umount2(target, linux.MNT_DETACH)
