"""What processes that run tests at the same time share, and what each has for itself."""

from xdist.scheduler import LoadScopeScheduling

from mica import linux

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


class GroupScheduling(LoadScopeScheduling):
    """Gives a whole group of tests to one process. Groups are begun in the order in which their tests were found."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0].removeprefix("tests/")
        for name, beginnings in _GROUPS.items():
            if module.startswith(beginnings):
                return name
        return module
