"""`LayerStack` under the name by which scripts outside of mica import it: the reproductions of faults mount with it."""

from mica.layers.stack import LayerStack

__all__ = ["LayerStack"]
