"""A metadata layer without EROFS: a directory of empty files with overlayfs's attributes, made from what tests say."""

import os
from collections.abc import Mapping
from pathlib import Path

from mica.repo.localname import LocalName


def make_metadata_directory(root: Path, files: Mapping[str, LocalName]) -> Path:
    """Every file is as large as its content and has none of it (overlayfs.rst, "metacopy")."""
    root.mkdir(parents=True)
    for relative, name in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
        os.truncate(path, name.size)
        os.setxattr(path, "trusted.overlay.metacopy", b"")
        os.setxattr(path, "trusted.overlay.redirect", f"/{name}".encode("ascii"))
    return root
