"""What the node of this host serves, for `mica status`: the node itself, and the images that are held from it."""

import functools
import time
from pathlib import Path
from typing import Any

from mica.cli.status import Section
from mica.errors import MicaError
from mica.fetch.cache import Cache
from mica.fetch.parts import local_name_bytes
from mica.metaimage.reader import read_image
from mica.node.client import open_node
from mica.node.directory import NodeDirectory


def node_section(node: Path, directory: Path | None) -> Section:
    """One row, or none if no node runs."""
    facts = [] if directory is not None else [_node_facts(status) for status in _status(node)]
    columns = ("node", "pid", "method", "cache", "repositories", "requests", "bytes", "opened", "asked by the kernel")
    rows = [
        (f["directory"], f["pid"], f["method"], f["cache"], " ".join(f["repositories"]), f["requests"],
         f["transferred_bytes"], f["files_opened"], f["lookups"] + f["reads"])
        for f in facts
    ]  # fmt: skip
    return Section("nodes", "Node", columns, rows, facts)


def image_section(node: Path, directory: Path | None) -> Section:
    """The images that programs hold, and how much of each is in the cache."""
    facts = [] if directory is not None else [fact for status in _status(node) for fact in _image_facts(status)]
    columns = ("image", "layers", "held for", "files", "local files", "bytes", "local bytes", "local")
    rows = [
        (f["origin"], f["layers"], f"{f['held_s']} s", f["files"], f["local_files"], f["size_bytes"], f["local_bytes"],
         f"{f['local_bytes'] / f['size_bytes']:.1%}" if f["size_bytes"] else "100 %")
        for f in facts
    ]  # fmt: skip
    return Section("images", "Images held from the node", columns, rows, facts)


def _status(node: Path) -> list[dict[str, Any]]:
    try:
        with open_node(NodeDirectory(node).service) as client:
            return [{"directory": str(node), **client.ask("status")}]
    except MicaError:
        return []


def _node_facts(status: dict[str, Any]) -> dict[str, Any]:
    traffic = [repository["traffic"] for repository in status["repositories"]]
    sums = {name: sum(one[name] for one in traffic) for name in ("requests", "transferred_bytes", "files_opened")}
    return {
        **{name: status[name] for name in ("directory", "pid", "method", "cache")},
        "repositories": [repository["fqrn"] for repository in status["repositories"]],
        **sums,
        **status["session"],
    }


def _image_facts(status: dict[str, Any]) -> list[dict[str, Any]]:
    with Cache(Path(status["cache"])) as cache:
        share = functools.cache(functools.partial(_share, cache))
        facts = []
        for held in status["held"]:
            files, local_files, size, local = map(sum, zip(*(share(path) for path in held["images"]), strict=True))
            facts.append(
                {
                    "origin": held["origin"],
                    "layers": len(held["images"]),
                    "held_s": int(time.time()) - held["since"],
                    "files": files,
                    "local_files": local_files,
                    "size_bytes": size,
                    "local_bytes": local,
                }
            )
        return facts


def _share(cache: Cache, image: str) -> tuple[int, int, int, int]:
    """Files, those that are here, their bytes, and how many of those are here; each name of a file counts."""
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
