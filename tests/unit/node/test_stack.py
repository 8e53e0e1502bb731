"""Which directories make a union."""

from pathlib import Path

from mica.fetch.cache import Cache
from mica.node.directory import NodeDirectory
from mica.node.stack import LayerStack, Method, plan_stack

IMAGES = [Path("/n/layers/top"), Path("/n/layers/bottom")]


def test_content_is_asked_of_the_cache_first_and_of_the_errors_last(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        stack = plan_stack(IMAGES, cache, NodeDirectory(Path("/n")), [0, 3])
    assert stack.lower == tuple(IMAGES)
    assert stack.data == (
        tmp_path / "objects", Path("/n/objects/0"), Path("/n/objects/3"), tmp_path / "handover", Path("/n/objects/e")
    )  # fmt: skip
    assert stack.has_stubs
    assert LayerStack.from_json(stack.to_json()) == stack


def test_without_data_layers_the_objects_are_the_lowest_and_hidden(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        stack = plan_stack(IMAGES, cache, NodeDirectory(Path("/n")), [0, 3], mask=Path("/n/layers/mask"))
    assert stack.lower == (Path("/n/layers/mask"), *IMAGES, Path("/n/objects/any"))
    assert stack.data == ()
    assert LayerStack.from_json(stack.to_json()) == stack


def test_methods_are_in_order_of_preference() -> None:
    assert [method.value for method in Method] == ["kernel", "loop", "ordinary", "repository", "external"]
    assert [method for method in Method if method.uses_images] == [Method.KERNEL, Method.LOOP, Method.ORDINARY]
