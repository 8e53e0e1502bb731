"""The former name leads to the present one."""

from mica.mount import overlay as former
from mica.union import overlay


def test_scripts_find_it_by_its_former_name() -> None:
    assert (former.OverlayOptions, former.plan_overlay) == (overlay.OverlayOptions, overlay.plan_overlay)
