"""The nodes of this host for `mica status`, and the images that programs hold from them."""

import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mica.cli.statussections import NOT_COUNTED, Section, Thing
from mica.daemon.client import open_node
from mica.dataplane.nodedirectory import NodeDirectory, read_facts
from mica.errors import MicaError
from mica.files import is_locked, lock_holder, mapped_os_errors
from mica.fuse.identity import OBJECTS_SOURCE
from mica.mount.statusreport import is_trusted
from mica.mountinfo import read_mounts
from mica.sizes import format_size
from mica.texts import one_line

if TYPE_CHECKING:
    from mica.cache.cache import Cache


def node_sections(node: Path, directory: Path | None, *, count: bool = False) -> Sequence[Section]:
    """Two sections: the nodes that run or left mounts, and the images that programs hold from them; with `count` also
    how much of each image is local."""
    answers, left = [], []
    for path in [] if directory is not None else _directories(node):
        if (status := _status(path)) is not None:
            answers.append(status)
        elif (leavings := _look_at(path)) is not None:
            left.append(leavings)
    nodes = [_node_facts(status) for status in answers]
    images = [fact for status in answers for fact in _image_facts(status, count=count)]
    things = [*map(_node_thing, nodes), *map(_silent_thing, left)]
    return [
        Section("nodes", things, [*nodes, *(_silent_facts(one) for one in left)]),
        Section("images", [_image_thing(facts) for facts in images], images),
    ]


def _node_thing(facts: dict[str, Any]) -> Thing:
    lines = {
        "process": f"{facts['pid']}, method {facts['method']}",
        "cache": facts["cache"],
        "repositories": " ".join(facts["repositories"]) or "none yet",
        "fetched": f"{format_size(facts['transferred_bytes'])} in {facts['requests']} requests",
        "opened": f"{facts['files_opened']} files; the kernel asked {facts['lookups'] + facts['reads']} times",
    }
    return Thing(f"Node {one_line(facts['directory'])}", lines)


def _image_thing(facts: dict[str, Any]) -> Thing:
    text = NOT_COUNTED
    if facts["files"] is not None:
        percent = 100 * facts["local_bytes"] / facts["size_bytes"] if facts["size_bytes"] else 100.0
        text = f"{percent:.1f} % of {format_size(facts['size_bytes'])}"
        text += f", {facts['local_files']} of {facts['files']} files"
    lines = {"layers": facts["layers"], "held": f"for {facts['held_s']} s", "local": text}
    return Thing(f"Image {one_line(facts['origin'])}", lines)


class _Silent(NamedTuple):
    """A node whose service does not answer. `pid` is that of its supervisor, or of the last one if none runs."""

    directory: Path
    pid: int | None
    cache: str
    is_running: bool
    mounts: int


def _directories(node: Path) -> list[Path]:
    """The directory that is asked for, and those whose object filesystems are mounted here."""
    mounted = {
        Path(os.fsdecode(mount.target)).parent
        for mount in read_mounts()
        if mount.source == OBJECTS_SOURCE.encode("ascii") and is_trusted(mount)
    }
    return [node, *sorted(mounted - {node.resolve()})]


def _status(node: Path) -> dict[str, Any] | None:
    try:
        with open_node(NodeDirectory(node).service) as client:
            return {"directory": str(node), **client.ask("status")}
    except MicaError:
        return None


def _look_at(path: Path) -> _Silent | None:
    """None if nothing of a node is there."""
    node = NodeDirectory(path)
    prefix = os.fsencode(path.resolve()) + b"/"
    mounts = sum(mount.target.startswith(prefix) for mount in read_mounts())
    with mapped_os_errors(f"look at {path}"):
        is_running = is_locked(node.lock)
        facts = read_facts(node)
    if not is_running and not mounts:
        return None
    pid = lock_holder(node.lock) if is_running else facts.get("pid")
    return _Silent(path, pid if isinstance(pid, int) else None, str(facts.get("cache", "")), is_running, mounts)


def _silent_thing(node: _Silent) -> Thing:
    lines: dict[str, object] = {"process": node.pid or "", "state": "it runs, but its service does not answer"}
    if not node.is_running:
        removal = f"mica node --stop --node {one_line(str(node.directory))}"
        lines = {
            "state": "its process is gone: files that are not in its cache wait for the next mica node",
            "mounts": f"{node.mounts}; once no container uses them: {removal}",
        }
    return Thing(f"Node {one_line(str(node.directory))}", {**lines, "cache": one_line(node.cache)})


def _silent_facts(node: _Silent) -> dict[str, object]:
    return {
        "directory": str(node.directory),
        "state": "silent" if node.is_running else "gone",
        "pid": node.pid,
        "cache": node.cache,
        "mounts": node.mounts,
    }


def _node_facts(status: dict[str, Any]) -> dict[str, Any]:
    traffic = [repository["traffic"] for repository in status["repositories"]]
    sums = {name: sum(one[name] for one in traffic) for name in ("requests", "transferred_bytes", "files_opened")}
    return {
        **{name: status[name] for name in ("directory", "pid", "method", "cache")},
        "state": "serving",
        "repositories": [repository["fqrn"] for repository in status["repositories"]],
        **sums,
        **status["session"],
    }


def _image_facts(status: dict[str, Any], *, count: bool) -> list[dict[str, Any]]:
    """The last four are None if they are not counted."""
    names = ("files", "local_files", "size_bytes", "local_bytes")
    shares: list[Sequence[int | None]] = [(None,) * len(names)] * len(status["held"])
    if count:
        shares = _shares(Path(status["cache"]), [held["images"] for held in status["held"]])
    return [
        {
            "origin": held["origin"],
            "layers": len(held["images"]),
            "held_s": int(time.time()) - held["since"],
            **dict(zip(names, share, strict=True)),
        }
        for held, share in zip(status["held"], shares, strict=True)
    ]


def _shares(cache_path: Path, stacks: list[list[str]]) -> list[Sequence[int | None]]:
    """The shares of stacks of metadata images. An image that several stacks have is read once."""
    from mica.cache.cache import Cache

    with Cache(cache_path) as cache:
        share = functools.cache(functools.partial(_share, cache))
        return [[sum(column) for column in zip(*map(share, images), strict=True)] for images in stacks]


def _share(cache: "Cache", image: str) -> tuple[int, int, int, int]:
    """The number of files and of local ones, the bytes of files and the local ones of these. Each name of a file
    counts."""
    from mica.cache.partfiles import local_name_bytes
    from mica.metaimage.reader import read_image

    files = local_files = size_bytes = local_bytes = 0
    with open(image, "rb") as file:
        for _, inode in read_image(file, image):
            if inode.content is None:
                continue
            local = local_name_bytes(cache, inode.content)
            files += 1
            local_files += local == inode.size
            size_bytes += inode.size
            local_bytes += local
    return files, local_files, size_bytes, local_bytes
