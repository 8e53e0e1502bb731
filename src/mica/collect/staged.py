"""Staged layers that nobody came back for: forgotten, and their objects go with the next collection.

A conversion that holds one loses nothing: it takes only young ones, and makes old ones young first
(convert/staging.py).
"""

import time
from pathlib import Path

from mica.files import is_locked, mapped_os_errors


def forget_old(directory: Path, age_s: float) -> int:
    """Forget those that are older, but for those that are in use; how many. Their times are of this machine."""
    oldest = time.time() - age_s
    forgotten = 0
    with mapped_os_errors(f"clean up {directory}"):
        for path in directory.glob("*.json"):
            if path.stat().st_mtime < oldest and not is_locked(path.with_suffix(".lock")):
                path.unlink(missing_ok=True)
                forgotten += 1
    return forgotten
