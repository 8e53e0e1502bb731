"""A published image, mounted, against what another program unpacks of the original: every entry, byte and attribute.

What the format cannot hold is listed in each layer's facts; exactly that is left out of the comparison.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.publishedimages import PublishedImage
from tests.support.trees import Seen, differences, snapshot

Tree = dict[bytes, Seen]


def differences_from_unpacked(image: PublishedImage, unpacked: Tree, root: Path, cache: Path) -> list[str]:
    """What a mounted image shows otherwise than the directory that umoci made of it, as sentences."""
    reports = image.layer_reports(cache)
    for report in reports:
        for name in ("split_hardlinks", "dropped_xattrs", "implied_directories"):
            assert report[name]["total"] == len(report[name]["items"])
    trees = (unpacked, snapshot(os.fsencode(root)))
    return differences(*({path: _forget(seen, path, reports) for path, seen in tree.items()} for tree in trees))


def _forget(seen: Seen, path: bytes, reports: Sequence[dict[str, Any]]) -> Seen:
    text = path.decode("utf-8", "backslashreplace") or "/"
    if any(text in report["implied_directories"]["items"] for report in reports):
        seen = seen._replace(mtime_ns=0)
    dropped = {
        item["name"].encode()
        for report in reports
        for item in report["dropped_xattrs"]["items"]
        if item["path"] == text
    }
    # Umoci, as all that use Go's archive/tar, takes an attribute without a value for none.
    seen = seen._replace(xattrs=tuple(pair for pair in seen.xattrs if pair[1] and pair[0] not in dropped))
    if any(text in group["paths"] for report in reports for group in report["split_hardlinks"]["items"]):
        seen = seen._replace(links=())
    return seen
