"""Plans of unions: which options, which escapes; mounting itself is tried in tests/system/test_union_mounts.py."""

from pathlib import Path

import pytest

from mica import linux
from mica.errors import UserError
from mica.union.overlay import LAYERS_MAX, OverlayOptions, format_mount_data, plan_overlay

A, B, UP, WORK, TARGET = Path("/l/a"), Path("/l/b"), Path("/s/upper"), Path("/s/work"), Path("/t")


def test_layers_stay_top_first() -> None:
    plan = plan_overlay([A, B], UP, WORK, TARGET)
    assert format_mount_data(plan) == (
        "lowerdir=/l/a:/l/b,upperdir=/s/upper,workdir=/s/work,index=off,xino=off,metacopy=off,redirect_dir=nofollow"
    )
    assert plan.attributes == 0
    assert plan.describe().startswith("mount -t overlay overlay -o lowerdir=/l/a:/l/b,")
    assert plan.describe().endswith(" /t")


@pytest.mark.parametrize(
    ("name", "escaped"),
    [("a:b", "a\\:b"), ("a,b", "a\\,b"), ("a\\b", "a\\\\b"), ("a\\:b", "a\\\\\\:b"), ('a "b=', 'a "b=')],
)
def test_separators_in_paths_are_escaped(name: str, escaped: str) -> None:
    odd = Path("/l") / name
    data = format_mount_data(plan_overlay([odd, B], odd, odd, TARGET))
    assert data.startswith(f"lowerdir=/l/{escaped}:/l/b,upperdir=/l/{escaped},workdir=/l/{escaped},index=off")


def test_without_upper_it_is_read_only() -> None:
    plan = plan_overlay([A, B], None, None, TARGET, OverlayOptions(volatile=True))
    assert plan.attributes == linux.MOUNT_ATTR_RDONLY
    assert "upperdir" not in format_mount_data(plan)
    assert "volatile" not in format_mount_data(plan)


def test_one_read_only_layer_gets_the_empty_mount_point_below() -> None:
    assert plan_overlay([A], None, None, TARGET).lower == (A, TARGET)
    assert plan_overlay([A], UP, WORK, TARGET).lower == (A,)


def test_data_layers_switch_metacopy_on() -> None:
    options = OverlayOptions(data=(Path("/cache"), Path("/e:")))
    writable = format_mount_data(plan_overlay([A], UP, WORK, TARGET, options))
    assert writable.startswith("lowerdir=/l/a::/cache::/e\\:,upperdir=")
    assert writable.endswith("metacopy=on,redirect_dir=on")
    assert format_mount_data(plan_overlay([A], None, None, TARGET, options)).endswith("metacopy=on,redirect_dir=follow")


def test_volatile_and_nodev() -> None:
    plan = plan_overlay([A], UP, WORK, TARGET, OverlayOptions(volatile=True, nodev=True))
    assert format_mount_data(plan).endswith(",volatile")
    assert plan.attributes == linux.MOUNT_ATTR_NODEV


@pytest.mark.parametrize(
    ("lower", "upper", "work", "says"),
    [
        ([], UP, WORK, "at least one layer"),
        ([A], UP, None, "both an upper and a work"),
        ([A], None, WORK, "both an upper and a work"),
        ([A] * (LAYERS_MAX + 1), UP, WORK, "can have 500 layers, not 501"),
    ],
)
def test_impossible_unions_are_named(lower: list[Path], upper: Path | None, work: Path | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan_overlay(lower, upper, work, TARGET)


def test_failure_to_mount_names_the_union(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot mount a union of 2 layers: "):
        plan_overlay([tmp_path / "missing", A], None, None, tmp_path).mount()
