"""Which union a host gets, and what it is not for."""

from pathlib import Path

import pytest

from mica.engine.unions import AufsUnion, OverlayUnion, Place, UnionKind, choose_union
from mica.errors import UserError
from mica.layers.stack import LayerStack

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


def test_layers_of_the_node_are_not_for_aufs() -> None:
    with pytest.raises(UserError, match="AUFS cannot join layers of the node"):
        AufsUnion().mount(LayerStack((Path("/a"),), has_stubs=True), Place(Path("/t")))
