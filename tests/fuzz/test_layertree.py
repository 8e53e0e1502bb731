"""Archives of links, directories and files at random: the plan of a tree is what unpacking them into a directory gives.

The judge is the kernel: `unpack_layer` opens every name by openat2(2) with the directory for a root.
"""

import io
import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.tars import END, member
from tests.support.tools import need_root

from mica.engine.unpack import unpack_layer
from mica.engine.whiteouts import OverlayWhiteouts
from mica.errors import UserError
from mica.publish.layertree import LayerTree
from mica.tarstream import DEFAULT_LIMITS, Kind, read_tar

PART = st.sampled_from([b"a", b"b", b"c"])
PATH = st.lists(PART, min_size=1, max_size=4).map(b"/".join)
TARGET = st.builds(
    lambda start, parts: start + b"/".join(parts),
    st.sampled_from([b"", b"", b"/"]),
    st.lists(st.sampled_from([b"a", b"b", b"c", b"..", b"."]), min_size=1, max_size=4),
)
MEMBER = st.one_of(
    PATH.map(lambda path: member(path, b"x")),
    PATH.map(lambda path: member(path, type_flag=b"5", mode=b"0000755\0")),
    st.tuples(PATH, TARGET).map(lambda pair: member(pair[0], type_flag=b"2", link=pair[1])),
    st.tuples(PATH, PATH).map(lambda pair: member(pair[0], type_flag=b"1", link=pair[1])),
)
TYPES = {Kind.REGULAR: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "link"}


def planned(archive: bytes) -> dict[bytes, tuple[str, bytes]] | str:
    """What the tree has, or why there is none."""
    tree = LayerTree()
    try:
        for entry in read_tar(io.BytesIO(archive), limits=DEFAULT_LIMITS, require_end=True):
            node = tree.add(entry)
            if node is not None and entry.kind is Kind.REGULAR:
                node.content = True
        tree.finish()
    except UserError as error:
        return str(error)
    return {path: (TYPES[node.kind], node.link) for path, node in tree.walk() if path}


def unpacked(archive: bytes) -> dict[bytes, tuple[str, bytes]] | str:
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "target"
        target.mkdir()
        try:
            unpack_layer(io.BytesIO(archive), target, OverlayWhiteouts())
        except UserError as error:
            return str(error)
        root = os.fsencode(target)
        found = {}
        for directory, names, files in os.walk(root):
            for name in (*names, *files):
                path = directory + b"/" + name
                kind = "link" if os.path.islink(path) else "directory" if os.path.isdir(path) else "file"
                found[path[len(root) :]] = kind, os.readlink(path) if kind == "link" else b""
        return found


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MEMBER, min_size=1, max_size=8))
def test_members_land_where_the_kernel_puts_them(members: list[bytes]) -> None:
    need_root()
    archive = b"".join(members) + END
    plan, tree = planned(archive), unpacked(archive)
    if isinstance(plan, str):
        # What only the plan refuses: a directory that is not empty is not thrown away for something else.
        assert isinstance(tree, str) or "is not empty" in plan, plan
    elif isinstance(tree, str):
        # What only unpacking refuses: a directory behind a link that leads to nothing.
        assert "File exists" in tree, tree
    else:
        assert plan == tree
