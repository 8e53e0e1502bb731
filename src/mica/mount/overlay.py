"""The former name of `union/overlay.py`, for scripts outside of this tree that import it."""

from mica.union.overlay import OverlayOptions, plan_overlay

__all__ = ["OverlayOptions", "plan_overlay"]
