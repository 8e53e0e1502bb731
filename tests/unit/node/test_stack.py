"""What scripts outside import under its former name is the same thing."""

from mica.layers import stack as present
from mica.node import stack as former


def test_the_former_name_is_the_same_class() -> None:
    assert former.LayerStack is present.LayerStack
