"""What processes that run tests at the same time share, and what each has for itself."""

import os
from pathlib import Path

import pytest

from mica import linux

_TESTS = Path(__file__).parent.parent
# Tests that look at, or compete for, what a machine has only one of.
_GROUPS = {
    "docker": ("engines/test_docker", "engines/test_convert_run", "engines/test_push_run"),
    "containers": ("system/test_run", "system/test_private_node", "system/test_status", "system/test_trace"),
}


def own_mount_table() -> None:
    """From here on this process and its children neither see nor disturb what others mount.

    It is for the main thread, before any other is started: a thread that exists keeps the former table.
    """
    try:
        linux.unshare(linux.CLONE_NEWNS)
    except PermissionError:  # root in a container that may not mount: the tests that do say so
        return
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)


def group_of(item: pytest.Item) -> str:
    """Tests of one group run one after the other, in one process (`--dist loadgroup`)."""
    module = os.fspath(item.path.relative_to(_TESTS))
    for name, beginnings in _GROUPS.items():
        if module.startswith(beginnings):
            return name
    return module
