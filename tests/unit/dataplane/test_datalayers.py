"""Where the content of a union is looked for, and in which order."""

from pathlib import Path

from mica.cache.cache import Cache
from mica.dataplane.datalayers import plan_stack
from mica.dataplane.nodedirectory import NodeDirectory
from mica.layers.stack import LayerStack

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
