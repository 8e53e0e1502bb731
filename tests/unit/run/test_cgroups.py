"""Which control groups a host offers."""

from pathlib import Path

from mica.mountinfo import parse_mountinfo
from mica.run.cgroups import Hierarchy, has_usable_cgroups, hierarchies_among

MOUNTINFO = rb"""22 1 0:20 / /proc rw,relatime shared:5 - proc proc rw
30 24 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
31 24 0:27 / /sys/fs/cgroup/de\040v rw,nosuid shared:9 master:1 - cgroup cgroup rw,devices
"""


def test_mountinfo() -> None:
    assert hierarchies_among(parse_mountinfo(MOUNTINFO)) == [
        Hierarchy(Path("/sys/fs/cgroup/unified"), 2, "rw,nsdelegate"),
        Hierarchy(Path("/sys/fs/cgroup/de v"), 1, "rw,devices"),
    ]


def test_a_device_filter_is_needed(tmp_path: Path) -> None:
    unified, devices, cpu = (
        Hierarchy(tmp_path, version, options) for version, options in ((2, "rw"), (1, "rw,devices"), (1, "rw,cpu"))
    )
    assert has_usable_cgroups([unified])
    assert has_usable_cgroups([unified, cpu, devices])
    assert not has_usable_cgroups([unified, cpu])
    assert not has_usable_cgroups([])
    assert not has_usable_cgroups([devices, Hierarchy(tmp_path / "missing", 1, "rw,cpu")])
