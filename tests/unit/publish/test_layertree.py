"""Layer trees: hostile members, duplicates, hindsight, and GNU tar's own unpacking as judge."""

import io
import itertools
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from tests.support.tars import by_program, file_entry, link_entry
from tests.support.tools import need

from mica.errors import UserError
from mica.publish.layertree import LAYER, LIST_CAP, PLAIN, LayerReport, LayerTree, Mode, Node
from mica.tarstream import Kind, TarEntry, read_tar


def directory(name: bytes, mode: int = 0o755, **attributes: object) -> TarEntry:
    return TarEntry(name, Kind.DIRECTORY, mode, **attributes)  # type: ignore[arg-type]


def plan(*members: TarEntry, mode: Mode = LAYER) -> tuple[dict[bytes, Node], LayerReport]:
    tree = LayerTree(mode)
    for number, member in enumerate(members):
        node = tree.add(member)
        if node is not None and node.kind is Kind.REGULAR:
            node.content = number
    report = tree.finish()
    return dict(tree.walk()), report


def refusal(*members: TarEntry, mode: Mode = LAYER) -> str:
    tree = LayerTree(mode)
    for member in members[:-1]:
        tree.add(member)
    with pytest.raises(UserError) as failure:
        tree.add(members[-1])
    assert str(failure.value).isprintable()
    return str(failure.value)


def symlink(name: bytes, target: bytes) -> TarEntry:
    return link_entry(name, target, Kind.SYMLINK)


# Names


@pytest.mark.parametrize("name", [b"a/b", b"./a/b", b"/a/b", b"//a//b", b"./././a/./b", b"a/b/."])
def test_names_are_inside_the_root(name: bytes) -> None:
    paths, _ = plan(file_entry(name))
    assert list(paths) == [b"", b"/a", b"/a/b"]


@pytest.mark.parametrize("name", [b"..", b"../x", b"a/../b", b"/..", b"a/..", b"./../x"])
@pytest.mark.parametrize("mode", [LAYER, PLAIN])
def test_parents_are_refused_not_resolved(name: bytes, mode: Mode) -> None:
    assert "'..'" in refusal(file_entry(name), mode=mode)
    assert "'..'" in refusal(file_entry(b"a"), link_entry(b"b", name), mode=mode)


def test_names_that_only_look_like_parents_are_names() -> None:
    paths, _ = plan(file_entry(b"..."), file_entry(b"..a"), file_entry(b"a.."))
    assert set(paths) == {b"", b"/...", b"/..a", b"/a.."}


def test_root_takes_attributes_and_nothing_else() -> None:
    paths, report = plan(directory(b"./", 0o700, uid=5, mtime_s=7, xattrs={b"user.a": b"b"}))
    root = paths[b""]
    assert (root.st_mode, root.uid, root.mtime_s, root.xattrs) == (0o40700, 5, 7, {b"user.a": b"b"})
    assert report.implied_directories.total == 0
    for entry in (file_entry(b"./"), symlink(b"/", b"x"), TarEntry(b".", Kind.FIFO)):
        assert "root" in refusal(entry)


def test_implied_directories_until_the_archive_brings_them() -> None:
    paths, report = plan(file_entry(b"a/b/c"), directory(b"a", 0o711, mtime_s=9))
    assert (paths[b"/a"].mode, paths[b"/a"].mtime_s) == (0o711, 9)
    b = paths[b"/a/b"]
    assert (b.mode, b.uid, b.gid, b.mtime_s, b.mtime_ns) == (0o755, 0, 0, 0, 0)
    assert report.implied_directories.items == ["/", "/a/b"]


# Links as parents


@pytest.mark.parametrize("kind", [Kind.REGULAR, Kind.SYMLINK, Kind.HARDLINK, Kind.FIFO, Kind.BLOCK])
@pytest.mark.parametrize("mode", [LAYER, PLAIN])
def test_nothing_is_written_through_a_non_directory(kind: Kind, mode: Mode) -> None:
    """In a layer the link leads to a file here."""
    before = [file_entry(b"x"), TarEntry(b"a", kind, link=b"x", device_major=1)]
    blocker = "'x'" if kind is Kind.SYMLINK and mode is LAYER else "'a'"
    for entry in (
        file_entry(b"a/passwd"),
        directory(b"a/d"),
        link_entry(b"a/h", b"x"),
        file_entry(b"a/d/e"),
        symlink(b"a/s", b"x"),
    ):
        message = refusal(*before, entry, mode=mode)
        assert f"{blocker}, which is a" in message
        assert repr(entry.name.decode()) in message
    if mode is LAYER:
        assert blocker in refusal(*before, file_entry(b"a/.wh.b"))


@pytest.mark.parametrize(
    ("target", "place"),
    [
        (b"store", b"/app/store"),
        (b"./store/.", b"/app/store"),
        (b"/app/store", b"/app/store"),
        (b"../app//store", b"/app/store"),
        (b"../../../../app/store", b"/app/store"),
        (b"/../app/store", b"/app/store"),
        (b"other", b"/app/store"),
        (b"missing/deep", b"/app/missing/deep"),
        (b"/missing", b"/missing"),
        (b"/", b""),
        (b"..", b""),
        (b"../..", b""),
        (b"store/up", b"/app"),
    ],
)
def test_members_below_a_link_go_where_it_leads_inside_the_root(target: bytes, place: bytes) -> None:
    paths, report = plan(
        directory(b"app"), directory(b"app/store"), symlink(b"app/other", b"store"), symlink(b"app/store/up", b".."),
        symlink(b"app/link", target), file_entry(b"app/link/d/file", 3), file_entry(b"app/link/.wh.gone"),
    )  # fmt: skip
    assert paths[b"/app/link"].link == target
    assert paths[place + b"/d/file"].size == 3
    assert paths[place + b"/gone"].is_whiteout
    assert [path for path, node in paths.items() if node.kind is Kind.REGULAR] == [place + b"/d/file"]
    assert (place + b"/d").decode() in report.implied_directories.items


def test_plain_archives_have_nothing_below_links() -> None:
    """A link of an archive that is put into a repository may mean what is around it."""
    assert "'l'" in refusal(directory(b"d"), symlink(b"l", b"d"), file_entry(b"l/f"), mode=PLAIN)
    refusal(file_entry(b"d/f"), symlink(b"l", b"d"), link_entry(b"h", b"l/f"), mode=PLAIN)


@pytest.mark.parametrize("links", [{b"a": b"a"}, {b"a": b"b", b"b": b"a"}, {b"a": b"a/a"}, {b"a": b"b/x", b"b": b"a"}])
def test_circles_of_links_are_refused(links: dict[bytes, bytes]) -> None:
    members = [symlink(name, target) for name, target in links.items()]
    assert "too many symbolic links" in refusal(*members, file_entry(b"a/f"))
    assert "too many symbolic links" in refusal(file_entry(b"f"), *members, link_entry(b"h", b"a/f"))


def test_a_way_through_links_costs_little() -> None:
    """Forty links of four thousand bytes each, looked up for every member, would take for ever."""
    tree = LayerTree(max_link_steps=1_000_000)
    tree.add(directory(b"d"))
    for number in range(39):
        tree.add(symlink(b"l%d" % number, b"d/../" * 800 + b"l%d" % (number + 1)))
    tree.add(symlink(b"l39", b"d"))

    def add_all() -> None:
        for number in range(10_000):
            tree.add(file_entry(b"l0/%d" % number))

    with pytest.raises(UserError, match="too many symbolic links"):
        add_all()


def test_hard_link_targets_are_looked_up_through_links_but_for_the_last_name() -> None:
    paths, _ = plan(
        file_entry(b"usr/lib/z"), symlink(b"lib", b"usr/lib"), symlink(b"s", b"usr/lib/z"),
        link_entry(b"usr/lib/y", b"lib/z"), link_entry(b"t", b"s"), link_entry(b"lib/x", b"/lib/y"),
    )  # fmt: skip
    assert paths[b"/usr/lib/z"] is paths[b"/usr/lib/y"] is paths[b"/usr/lib/x"]
    assert paths[b"/t"] is paths[b"/s"]
    assert paths[b"/t"].kind is Kind.SYMLINK
    for target in (b"lib/none", b"lib/z/f", b"none/z", b"s/z", b"lib/.wh.q"):
        refusal(
            file_entry(b"usr/lib/z"), symlink(b"lib", b"usr/lib"), symlink(b"s", b"usr/lib/z"), link_entry(b"h", target)
        )


def test_a_directory_that_replaces_a_link_is_a_parent() -> None:
    paths, _ = plan(symlink(b"a", b"/etc"), directory(b"a"), file_entry(b"a/passwd"))
    assert paths[b"/a"].kind is Kind.DIRECTORY
    assert b"/a/passwd" in paths


# Duplicates

MAKERS = {
    Kind.REGULAR: lambda name: file_entry(name, 3),
    Kind.DIRECTORY: lambda name: directory(name, 0o700),
    Kind.SYMLINK: lambda name: symlink(name, b"t"),
    Kind.HARDLINK: lambda name: link_entry(name, b"target"),
    Kind.CHARACTER: lambda name: TarEntry(name, Kind.CHARACTER, device_major=1, device_minor=3),
    Kind.BLOCK: lambda name: TarEntry(name, Kind.BLOCK, device_major=8),
    Kind.FIFO: lambda name: TarEntry(name, Kind.FIFO),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(Kind, Kind)))
def test_the_last_member_of_a_name_wins(first: Kind, second: Kind) -> None:
    paths, report = plan(file_entry(b"target", 9), MAKERS[first](b"n"), MAKERS[second](b"n"))
    assert set(paths) == {b"", b"/target", b"/n"}
    assert paths[b"/n"].kind is (Kind.REGULAR if second is Kind.HARDLINK else second)
    assert (paths[b"/n"] is paths[b"/target"]) == (second is Kind.HARDLINK)
    assert (paths[b"/n"].group is not None) == (second is Kind.HARDLINK)
    assert sum(report.counts.values()) == 2


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.DIRECTORY])
def test_a_full_directory_is_replaced_by_a_directory_only(kind: Kind) -> None:
    message = refusal(file_entry(b"target"), directory(b"n"), file_entry(b"n/child"), MAKERS[kind](b"n"))
    assert "not empty" in message
    paths, _ = plan(directory(b"n", 0o700), file_entry(b"n/child"), directory(b"n", 0o711))
    assert paths[b"/n"].mode == 0o711
    assert b"/n/child" in paths


def test_a_replaced_file_keeps_its_other_names() -> None:
    paths, _ = plan(file_entry(b"a", 1), link_entry(b"b", b"a"), file_entry(b"a", 2))
    assert (paths[b"/a"].content, paths[b"/b"].content) == (2, 0)
    assert paths[b"/a"].group is paths[b"/b"].group is None


# Hard links


def test_links_in_one_directory_are_one_node() -> None:
    paths, report = plan(
        TarEntry(b"d/a", mode=0o4755, uid=7, size=5, mtime_s=3, xattrs={b"user.x": b"y"}),
        TarEntry(b"d/c", Kind.HARDLINK, mode=0o644, uid=8, mtime_s=4, link=b"./d/a"),
        TarEntry(b"d/b", Kind.HARDLINK, link=b"/d/c"),
    )
    node = paths[b"/d/a"]
    assert node is paths[b"/d/b"] is paths[b"/d/c"]
    assert (node.mode, node.uid, node.mtime_s) == (0o4755, 7, 3)
    assert node.group is not None
    assert node.group.paths == (b"/d/a", b"/d/b", b"/d/c")
    assert (report.counts["regular"], report.counts["hardlink"], report.bytes) == (1, 2, 5)
    assert report.split_hardlinks.total == 0


def test_links_across_directories_become_files_of_the_same_content() -> None:
    paths, report = plan(
        file_entry(b"d/a", 5), link_entry(b"d/b", b"d/a"), link_entry(b"e/a", b"d/a"), link_entry(b"f/a", b"e/a"),
        link_entry(b"f/b", b"e/a"),
    )  # fmt: skip
    d, e, f = paths[b"/d/a"], paths[b"/e/a"], paths[b"/f/a"]
    assert d is not e is not f is not d
    assert (d.content, e.content, f.content) == (0, 0, 0)
    assert (d.size, e.size, f.size) == (5, 5, 5)
    assert d.group is not None
    assert f.group is not None
    assert (d.group.paths, e.group, f.group.paths) == ((b"/d/a", b"/d/b"), None, (b"/f/a", b"/f/b"))
    assert report.split_hardlinks.items == [{"names": 5, "paths": ["/d/a", "/d/b", "/e/a", "/f/a", "/f/b"]}]
    assert report.bytes == 5


@pytest.mark.parametrize("kind", [Kind.SYMLINK, Kind.FIFO, Kind.BLOCK, Kind.CHARACTER])
def test_links_to_other_kinds(kind: Kind) -> None:
    paths, _ = plan(MAKERS[kind](b"a"), link_entry(b"b", b"a"))
    assert paths[b"/b"] is paths[b"/a"]


@pytest.mark.parametrize("before", [[], [directory(b"target")], [file_entry(b"target/x")], [TarEntry(b".wh.target")]])
@pytest.mark.parametrize("target", [b"target", b".wh.target", b"/", b"target/none/x"])
def test_links_to_nothing(before: list[TarEntry], target: bytes) -> None:
    message = refusal(*before, link_entry(b"h", target))
    assert "'h'" in message
    assert repr(target.decode()) in message


def test_add_hands_out_only_what_is_to_be_stored() -> None:
    tree = LayerTree()
    assert tree.add(file_entry(b"a")) is not None
    for entry in (link_entry(b"b", b"a"), file_entry(b".wh.c"), file_entry(b".wh..wh..opq")):
        assert tree.add(entry) is None


# Whiteouts


@pytest.mark.parametrize("order", [1, -1])
def test_whiteouts_yield_to_entries(order: int) -> None:
    members = [
        file_entry(b".wh.gone"),
        TarEntry(b"d/.wh.file", mode=0o600, uid=9, mtime_s=99),
        file_entry(b"d/file", 3),
        file_entry(b"d/.wh.dir"),
        directory(b"d/dir"),
        file_entry(b"d/.wh.implied"),
        file_entry(b"d/implied/x"),
        file_entry(b"d/.wh.link"),
        symlink(b"d/link", b"x"),
    ]
    paths, report = plan(*members[::order])
    gone = paths[b"/gone"]
    assert gone.is_whiteout
    assert (gone.st_mode, gone.device, gone.uid, gone.gid, gone.mtime_s) == (0o20000, 0, 0, 0, 0)
    assert paths[b"/d/file"].kind is Kind.REGULAR
    assert paths[b"/d/link"].kind is Kind.SYMLINK
    assert paths[b"/d/dir"].xattrs == paths[b"/d/implied"].xattrs == {b"trusted.overlay.opaque": b"y"}
    assert report.whiteouts.items == ["/gone"]
    assert paths[b""].xattrs == {b"trusted.overlay.origin": b""}, "it says that there are whiteouts"
    assert not paths[b"/d"].xattrs
    assert report.opaque.items == ["/d/dir", "/d/implied"]
    assert report.implied_directories.items == ["/", "/d"]
    assert not any(name.rpartition(b"/")[2].startswith(b".wh.") for name in paths)
    assert report.counts["character"] == 0


@pytest.mark.parametrize("order", [1, -1])
def test_opaque_marker(order: int) -> None:
    members = [directory(b"d", 0o700, xattrs={b"user.a": b"1"}), file_entry(b"d/.wh..wh..opq"), file_entry(b"d/x")]
    paths, report = plan(*members[::order], file_entry(b".wh.d"))
    assert paths[b"/d"].xattrs == {b"user.a": b"1", b"trusted.overlay.opaque": b"y"}
    assert report.opaque.items == ["/d"]
    assert report.opaque.total == 1


def test_an_opaque_root() -> None:
    paths, report = plan(file_entry(b".wh..wh..opq"))
    assert paths[b""].xattrs == {b"trusted.overlay.opaque": b"y"}
    assert report.opaque.items == ["/"]


def test_there_are_no_whiteouts_where_lower_layers_show_nothing() -> None:
    names = [b"d/.wh.-before-the-marker", b"d/.wh..wh..opq", b"d/.wh.gone", b"d/sub/.wh.gone", b"d/sub/deep/.wh.gone",
             b"d/sub/file", b"d/.wh.sub", b".wh.e", b"e/.wh.gone", b"f/.wh.gone"]  # fmt: skip
    paths, report = plan(*map(file_entry, names))
    assert [path for path in paths if path.endswith((b"gone", b"marker"))] == [b"/f/gone"]
    assert report.whiteouts.items == ["/f/gone"]
    assert sorted(report.opaque.items) == ["/d", "/d/sub", "/e"]
    assert b"/d/sub/file" in paths
    assert {path for path, node in paths.items() if b"trusted.overlay.origin" in node.xattrs} == {b"/f"}


def test_a_directory_of_whiteouts_only_may_be_replaced() -> None:
    paths, _ = plan(file_entry(b"d/.wh.x"), file_entry(b"d/.wh..wh..opq"), file_entry(b"d"), directory(b"d"))
    assert list(paths) == [b"", b"/d"]
    assert not paths[b"/d"].xattrs


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh.", b"./.wh.."])
def test_whiteouts_of_nothing(name: bytes) -> None:
    assert "whiteout" in refusal(file_entry(name))


@pytest.mark.parametrize("name", [b".wh.d/x", b"d/.wh.e/f/g", b".wh..wh..opq/x", b"d/.wh.e/.wh..wh.aufs"])
def test_nothing_lies_below_a_whiteout(name: bytes) -> None:
    assert "below a whiteout" in refusal(file_entry(name))


def test_whiteouts_of_dotted_names() -> None:
    paths, _ = plan(file_entry(b".wh..bashrc"), file_entry(b".wh....."))
    assert paths[b"/.bashrc"].is_whiteout
    assert paths[b"/...."].is_whiteout


def test_aufs_files_are_dropped_but_can_be_linked_to() -> None:
    paths, report = plan(
        file_entry(b".wh..wh.aufs", 1),
        directory(b".wh..wh.orph"),
        file_entry(b".wh..wh.plnk/12.34", 7),
        link_entry(b"usr/a", b".wh..wh.plnk/12.34"),
    )
    assert set(paths) == {b"", b"/usr", b"/usr/a"}
    assert (paths[b"/usr/a"].content, paths[b"/usr/a"].group) == (2, None)
    assert (report.counts["regular"], report.counts["hardlink"], report.bytes) == (1, 0, 7)


def test_a_device_that_overlayfs_would_take_for_a_whiteout() -> None:
    device = TarEntry(b"dev/x", Kind.CHARACTER)
    assert "0:0" in refusal(device)
    paths, report = plan(device, mode=PLAIN)
    assert paths[b"/dev/x"].st_mode >> 12 == 0o2
    assert report.counts["character"] == 1
    assert plan(TarEntry(b"b", Kind.BLOCK))[0][b"/b"].kind is Kind.BLOCK


def test_plain_archives_have_no_whiteouts() -> None:
    names = [b".wh.x", b"d/.wh..wh..opq", b".wh.", b".wh..", b".wh.d/e", b".wh..wh.aufs"]
    paths, report = plan(*map(file_entry, names), mode=PLAIN)
    assert {b"/" + name for name in names} <= set(paths)
    assert report.whiteouts.total == report.opaque.total == 0
    assert "not empty" in refusal(file_entry(b"d/.wh.x"), file_entry(b"d"), mode=PLAIN)


# Attributes


def test_overlay_attributes_are_not_an_archives() -> None:
    xattrs = {b"trusted.overlay.opaque": b"y", b"user.overlay.redirect": b"/x", b"user.ok": b"", b"trusted.md5": b"1"}
    paths, report = plan(directory(b"d", xattrs=dict(xattrs)))
    assert paths[b"/d"].xattrs == {b"user.ok": b"", b"trusted.md5": b"1"}
    assert report.dropped_xattrs.items == [
        {"path": "/d", "name": "trusted.overlay.opaque", "bytes": 1},
        {"path": "/d", "name": "user.overlay.redirect", "bytes": 2},
    ]
    paths, _ = plan(directory(b"d", xattrs=dict(xattrs)), mode=PLAIN)
    assert set(paths[b"/d"].xattrs) == set(xattrs) - {b"trusted.overlay.opaque"}


def test_attributes_the_format_cannot_hold() -> None:
    fits = {b"k" * 255: b"v" * 255, b"user.fits": b"v" * 65535}
    xattrs = {b"": b"x", b"K" * 256: b"", b"user.long": b"v" * 65536, b"a\0b": b"", **fits}
    paths, report = plan(file_entry(b"f\n", xattrs=xattrs))
    assert paths[b"/f\n"].xattrs == fits
    assert {"path": r"/f\x0a", "name": "user.long", "bytes": 65536} in report.dropped_xattrs.items
    assert {"path": r"/f\x0a", "name": r"a\x00b", "bytes": 0} in report.dropped_xattrs.items
    assert report.dropped_xattrs.total == 4


def test_attributes_of_one_file_are_bounded_together() -> None:
    xattrs = {b"user.%d" % number: b"v" * 40_000 for number in range(5)} | {b"security.capability": b"c" * 20}
    paths, report = plan(file_entry(b"f", xattrs=xattrs))
    assert set(paths[b"/f"].xattrs) == {b"security.capability", b"user.0", b"user.1", b"user.2"}
    assert report.dropped_xattrs.total == 2


def test_at_most_255_attributes_also_when_opaque() -> None:
    xattrs = {b"user.%03d" % number: b"" for number in range(300)}
    paths, report = plan(directory(b"d", xattrs=xattrs), file_entry(b"d/.wh..wh..opq"))
    assert len(paths[b"/d"].xattrs) == 255
    assert paths[b"/d"].xattrs[b"trusted.overlay.opaque"] == b"y"
    assert report.dropped_xattrs.total == 46


@pytest.mark.parametrize("mtime_s", [2**63 // 10**9, -(2**63 // 10**9), 2**63 - 1, -(2**63)])
def test_times_that_engines_cannot_say(mtime_s: int) -> None:
    paths, report = plan(file_entry(b"f", mtime_s=mtime_s, mtime_ns=5))
    assert (paths[b"/f"].mtime_s, paths[b"/f"].mtime_ns) == (0, 0)
    assert report.changed_times.items == [{"path": "/f", "mtime": mtime_s}]
    paths, report = plan(file_entry(b"f", mtime_s=mtime_s, mtime_ns=5), mode=PLAIN)
    assert (paths[b"/f"].mtime_s, paths[b"/f"].mtime_ns, report.changed_times.total) == (mtime_s, 5, 0)


@pytest.mark.parametrize("mtime_s", [-9_223_372_035, -1, 0, 2**33])
def test_times_that_engines_can_say_stay(mtime_s: int) -> None:
    paths, report = plan(file_entry(b"f", mtime_s=mtime_s))
    assert (paths[b"/f"].mtime_s, report.changed_times.total) == (mtime_s, 0)


@pytest.mark.parametrize("mode", [0, 0o644, 0o777, 0o7777])
def test_links_have_the_mode_that_linux_gives_them(mode: int) -> None:
    paths, _ = plan(TarEntry(b"l", Kind.SYMLINK, mode, link=b"t"))
    assert paths[b"/l"].st_mode == 0o120777


def test_devices_have_their_number() -> None:
    paths, _ = plan(TarEntry(b"null", Kind.CHARACTER, 0o666, device_major=1, device_minor=3))
    assert paths[b"/null"].device == os.makedev(1, 3)
    assert paths[b"/null"].st_mode == 0o20666


# The whole


def test_order_of_members_does_not_matter() -> None:
    members = [directory(name, mtime_s=number) for number, name in enumerate([b"", b"a", b"a/b", b"c", b"a/b/c"])]
    members[0].name = b"./"
    members += [file_entry(name, 1) for name in (b"a/x", b"a/b/y", b"a-b", b"a/b/c/z", b"c/\xff", b".wh.q", b"a/.wh.b")]
    shuffler = random.Random(5)
    results = set()
    for _ in range(20):
        shuffler.shuffle(members)
        paths, report = plan(*members)
        rows = [(path, node.st_mode, node.mtime_s, tuple(node.xattrs.items())) for path, node in paths.items()]
        results.add((repr(rows), json.dumps(report.to_json())))
    assert len(results) == 1


def test_walk_gives_parents_first_and_siblings_by_bytes() -> None:
    names = [b"b", b"a/c", b"a/b/x", b"a-", b"a.d/x", b"\xff", b"a0"]
    paths, _ = plan(*map(file_entry, names))
    order = list(paths)
    assert order == [b"", b"/a", b"/a/b", b"/a/b/x", b"/a/c", b"/a-", b"/a.d", b"/a.d/x", b"/a0", b"/b", b"/\xff"]


def test_very_deep_trees() -> None:
    name = b"/".join([b"d"] * 2000)
    paths, report = plan(file_entry(name))
    assert len(paths) == 2001
    assert report.implied_directories.total == 2000
    assert len(report.implied_directories.items) == LIST_CAP


def test_memory_of_the_plan_is_bounded() -> None:
    deep = [file_entry(b"%d/" % number + b"/".join([b"d"] * 2000)) for number in range(10)]
    described = [file_entry(b"%d" % number, xattrs={b"user.x": b"v" * 255}) for number in range(1000)]
    for members in (deep, described):
        tree = LayerTree(max_memory_bytes=400_000)
        with pytest.raises(UserError, match="too many or too large"):
            list(map(tree.add, members))


def test_an_entry_costs_less_than_300_bytes() -> None:
    entries = [file_entry(b"d%d/f%d" % (n // 20, n), n + 1000, mtime_s=1_700_000_000 + n) for n in range(20_000)]
    names = sum(sys.getsizeof(entry.name.rpartition(b"/")[2]) for entry in entries)
    tree = LayerTree()
    tracemalloc.start()
    for entry in entries:
        tree.add(entry)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert (held - names) / len(entries) < 300


def test_a_finished_tree_takes_nothing() -> None:
    tree = LayerTree()
    tree.finish()
    with pytest.raises(ValueError, match="finished"):
        tree.add(file_entry(b"a"))
    with pytest.raises(ValueError, match="once"):
        tree.finish()


def test_lists_of_the_report_are_bounded_by_their_text_too() -> None:
    """A path can have 4095 bytes, each of which is printed as four characters."""
    above = b"/".join([b"\xff" * 250] * 2)
    _, report = plan(*(file_entry(b"%s/%d/f" % (above, number)) for number in range(LIST_CAP)))
    implied = report.implied_directories
    assert implied.total == LIST_CAP + 3
    assert len(implied.items) < LIST_CAP
    assert len(json.dumps(implied.to_json())) < 4 << 20


def test_report_is_json_with_printable_paths() -> None:
    _, report = plan(file_entry(b"\xe9\n/x"), file_entry(b".wh.\x1b"))
    text = json.dumps(report.to_json())
    assert json.loads(text)["implied_directories"] == {"total": 2, "items": ["/", r"/\xe9\x0a"]}
    assert json.loads(text)["whiteouts"] == {"total": 1, "items": [r"/\x1b"]}


def test_gnu_tar_unpacks_to_the_same_tree(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "f").write_bytes(b"12345")
    os.link(source / "a" / "b" / "f", source / "a" / "b" / "g")
    os.link(source / "a" / "b" / "f", source / "h")
    (source / "l").symlink_to("a/b")
    os.mkfifo(source / "p", 0o640)
    target.mkdir()
    archive = by_program(need("tar", "tar"), source, "--format=pax")
    subprocess.run(["tar", "-xpf", "-", "-C", str(target)], input=archive, check=True)
    paths, report = plan(*read_tar(io.BytesIO(archive), require_end=True))
    for path, node in paths.items():
        status = os.lstat(os.fsencode(target) + path)
        assert (node.st_mode, node.uid, node.gid) == (status.st_mode, status.st_uid, status.st_gid)
        assert node.mtime_s * 10**9 + node.mtime_ns == status.st_mtime_ns
    assert len(paths) == 1 + len(list(target.rglob("*")))
    assert report.split_hardlinks.items == [{"names": 3, "paths": ["/a/b/f", "/a/b/g", "/h"]}]
