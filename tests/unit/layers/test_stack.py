"""Which directories make a union."""

from pathlib import Path

from mica.layers.stack import LayerStack, Method
from mica.union.overlay import OverlayOptions


def test_methods_are_in_order_of_preference() -> None:
    assert [method.value for method in Method] == [
        "kernel", "loop", "ordinary", "ordinary-loop", "repository", "external",
    ]  # fmt: skip
    assert [method for method in Method if not method.uses_images] == [Method.REPOSITORY, Method.EXTERNAL]
    combinations = [(method.has_data_layers, method.by_loop) for method in Method if method.uses_images]
    assert combinations == [(True, False), (True, True), (False, False), (False, True)]


def test_of_a_layer_that_is_there_twice_the_topmost_counts() -> None:
    empty, top, base = Path("/l/empty"), Path("/l/top"), Path("/l/base")
    stack = LayerStack((empty, top, empty, base))
    assert stack.lower == (empty, top, base)
    assert LayerStack.from_json({**stack.to_json(), "lower": ["/l/top", "/l/base", "/l/top"]}).lower == (top, base)


def test_what_is_known_of_the_kernel_comes_with_the_layers() -> None:
    stack = LayerStack((Path("/a"),), (Path("/d"),), has_stubs=True, one_by_one=False)
    assert stack.options(volatile=True) == OverlayOptions((Path("/d"),), True, volatile=True, one_by_one=False)
    assert LayerStack.from_json(stack.to_json()).options() == stack.options()
