"""Unions mounted in both ways: odd names, whiteouts, many layers."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.tools import need_linux, need_root

from mica import linux
from mica.mountinfo import read_mounts_of, unescaped
from mica.union.overlay import (
    LAYERS_MAX,
    OverlayOptions,
    OverlayPlan,
    _mount_by_fsconfig,
    _mount_classic,
    open_overlay,
    plan_overlay,
    takes_one_by_one,
)

pytestmark = pytest.mark.system
ODD = ("plain", "a:b", "a,b", "back\\slash", "back\\:", 'sp ace"=', "h" * 200 + "/" + "i" * 200)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    need_root()
    for name in ("upper:,\\", "work\\", "target"):
        (tmp_path / name).mkdir()
    return tmp_path


def _ways() -> list[Callable[[OverlayPlan], None]]:
    """Those that this kernel has."""
    if os.geteuid() != 0:
        return [_mount_classic]
    return [_mount_by_fsconfig, _mount_classic] if takes_one_by_one() else [_mount_classic]


@pytest.mark.parametrize("mount", _ways())
@pytest.mark.parametrize("is_writable", [True, False])
@pytest.mark.parametrize("count", [1, len(ODD)])
def test_odd_names(base: Path, mount: Callable[[OverlayPlan], None], is_writable: bool, count: int) -> None:
    layers = [base / name for name in ODD[:count]]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / str(number)).touch()
    upper, work = (base / "upper:,\\", base / "work\\") if is_writable else (None, None)
    plan = plan_overlay(layers, upper, work, base / "target")
    mount(plan)
    try:
        assert sorted(os.listdir(plan.target)) == [str(number) for number in range(count)]
        if upper:
            (plan.target / "new").touch()
            assert os.listdir(upper) == ["new"]
        else:
            with pytest.raises(OSError, match="Read-only"):
                (plan.target / "new").touch()
    finally:
        linux.umount2(plan.target)
    assert os.listdir(plan.target) == []


@pytest.mark.parametrize("mount", _ways())
@pytest.mark.parametrize("count", [128, LAYERS_MAX])
def test_many_layers_with_long_names(base: Path, mount: Callable[[OverlayPlan], None], count: int) -> None:
    layers = [base / f"{'long' * 20}{number}" for number in range(count)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (layer / str(number)).touch()
    plan = plan_overlay(layers, base / "upper:,\\", base / "work\\", base / "target")
    directory = os.getcwd()
    mount(plan)
    try:
        assert len(os.listdir(plan.target)) == count
        assert os.getcwd() == directory
    finally:
        linux.umount2(plan.target)


def test_data_only_layers_keep_their_names_beside_many_others(base: Path) -> None:
    """By them those who make room in a cache find the unions over it."""
    layers = [base / f"{'long' * 20}{number}" for number in range(300)]
    for layer in (*layers, base / "objects"):
        layer.mkdir()
    options = OverlayOptions((base / "objects",))
    plan = plan_overlay(layers, base / "upper:,\\", base / "work\\", base / "target", options)
    need_linux(6, 5, "data-only layers")
    _mount_classic(plan)
    try:
        (mount,) = [mount for mount in read_mounts_of("self") if mount.target == os.fsencode(plan.target)]
        assert os.fsencode(base / "objects") in unescaped(mount.super_options)
    finally:
        linux.umount2(plan.target)


def test_how_layers_are_told_is_asked_of_the_kernel_once(base: Path) -> None:
    (base / "layer").mkdir()
    plan = plan_overlay([base / "layer"], None, None, base / "target")
    assert plan.one_by_one is None
    takes_one_by_one.cache_clear()
    for _ in range(3):
        with open_overlay(plan):
            pass
    assert takes_one_by_one.cache_info().misses == 1
    takes_one_by_one.cache_clear()
    for known in (False, takes_one_by_one.__wrapped__()):
        with open_overlay(replace(plan, one_by_one=known)):
            pass
    assert takes_one_by_one.cache_info().misses == 0


def test_a_single_layer_hides_its_whiteouts_and_no_device_opens(base: Path) -> None:
    layer = base / "layer"
    layer.mkdir()
    os.mknod(layer / "gone", 0o020000, os.makedev(0, 0))
    os.mknod(layer / "null", 0o020666, os.makedev(1, 3))
    with open_overlay(plan_overlay([layer], None, None, base / "target", OverlayOptions(nodev=True))) as union:
        assert os.listdir(union) == ["null"]
        with pytest.raises(PermissionError):
            (union / "null").read_bytes()
    assert str(base) not in Path("/proc/self/mountinfo").read_text()


def test_redirects_that_came_with_a_layer_are_not_followed(base: Path) -> None:
    for name in ("1/secret", "2/shown"):
        (base / name).mkdir(parents=True)
    (base / "1/secret/file").touch()
    os.setxattr(base / "2/shown", "trusted.overlay.redirect", b"/secret")
    plan = plan_overlay([base / "2", base / "1"], None, None, base / "target")
    with open_overlay(plan) as union, pytest.raises(PermissionError):
        os.listdir(union / "shown")
