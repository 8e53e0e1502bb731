"""Which union a host gets, AUFS's branches and its signs."""

import os
from pathlib import Path

import pytest

from mica.engine.unions import AufsUnion, OverlayUnion, Place, UnionKind, choose_union, format_branches
from mica.engine.whiteouts import AufsWhiteouts, is_overlay_attribute
from mica.errors import UserError
from mica.files import owned_fd
from mica.node.stack import LayerStack

OVERLAY, AUFS = "nodev\toverlay\n", "nodev\taufs\n"


@pytest.mark.parametrize(
    ("wanted", "known", "kind"),
    [
        (None, OVERLAY + AUFS, OverlayUnion),
        (None, AUFS + "\text4\n", AufsUnion),
        (None, OVERLAY, OverlayUnion),
        (UnionKind.AUFS, OVERLAY + AUFS, AufsUnion),
        (UnionKind.OVERLAY, OVERLAY + AUFS, OverlayUnion),
    ],
)
def test_the_choice(wanted: UnionKind | None, known: str, kind: type) -> None:
    assert type(choose_union(wanted, known)) is kind


@pytest.mark.parametrize(
    ("wanted", "known", "sentence"),
    [
        (UnionKind.AUFS, OVERLAY, "This kernel has no aufs"),
        (UnionKind.OVERLAY, AUFS, "This kernel has no overlay"),
        (None, "\text4\n", "neither overlayfs nor AUFS"),
    ],
)
def test_what_is_asked_for_and_absent(wanted: UnionKind | None, known: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        choose_union(wanted, known)


def test_branches_are_named_top_first_with_their_rights() -> None:
    place = Place(Path("/t"), Path("/up"), Path("/work"))
    assert format_branches([Path("/a"), Path("/b")], place) == [
        b"dio,xino=/dev/shm/aufs.xino,br:/up=rw:/a=ro+wh:/b=ro+wh"
    ]
    assert format_branches([Path("/a")], Place(Path("/t"))) == [b"dio,xino=/dev/shm/aufs.xino,br:/a=ro+wh"]


def test_what_does_not_fit_into_a_page_is_appended() -> None:
    lower = [Path(f"/{'x' * 100}/{number}") for number in range(100)]
    strings = format_branches(lower, Place(Path("/t"), Path("/up"), Path("/work")))
    assert len(strings) > 2
    assert all(len(string) < 4096 for string in strings)
    assert all(string.startswith(b"append:/") for string in strings[1:])
    named = b"".join(strings).replace(b",append:", b":").replace(b"append:", b":").split(b":")[2:]
    assert named == [os.fsencode(path) + b"=ro+wh" for path in lower]


@pytest.mark.parametrize("sign", [":", ",", "="])
def test_paths_that_aufs_cannot_say(sign: str) -> None:
    with pytest.raises(UserError, match="AUFS cannot take a layer"):
        format_branches([Path(f"/a{sign}b")], Place(Path("/t")))


def test_layers_of_the_node_are_not_for_aufs() -> None:
    with pytest.raises(UserError, match="AUFS cannot join layers of the node"):
        AufsUnion().mount(LayerStack((Path("/a"),), has_stubs=True), Place(Path("/t")))


def test_aufs_signs_there_and_back(tmp_path: Path) -> None:
    signs = AufsWhiteouts()
    with owned_fd(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        assert not signs.hides_below(fd, frozenset())
        signs.remove(fd, b"gone")
        signs.hide_below(fd)
    names = {os.fsencode(name) for name in os.listdir(tmp_path)}
    assert names == {b".wh.gone", b".wh..wh..opq"}
    assert signs.hides_below(0, frozenset(names))
    status = os.lstat(tmp_path / ".wh.gone")
    assert signs.removed_name(b".wh.gone", status) == b"gone"
    assert signs.removed_name(b".wh..wh..opq", status) is None
    assert signs.removed_name(b"file", status) is None
    assert signs.is_own(b".wh..wh..opq")


def test_attributes_that_steer_unions() -> None:
    assert is_overlay_attribute(b"trusted.overlay.redirect")
    assert is_overlay_attribute(b"user.overlay.opaque")
    assert not is_overlay_attribute(b"trusted.other")
