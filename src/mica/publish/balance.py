"""Where a catalog that has become too large is split: the stock server's rule for its automatic catalogs, as a plan.

Each directory weighs one, and what all in it weighs; one that has a catalog of its own weighs one. From the innermost
directories outwards, a directory that weighs too much gives catalogs to its heaviest subdirectories until it does not;
light ones get none. The same tree gives the same plan. Pure; called for catalogs and for trees of archives.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from mica.publish.rules import CatalogRules

Key = TypeVar("Key", bound=Hashable)


class Directory(NamedTuple):
    """`entries` are those directly in it, and `is_open` says whether they are in the same catalog as itself."""

    parent: Hashable
    name: bytes
    entries: int
    is_open: bool = True


def plan_split(top: Key, directories: Mapping[Key, Directory], rules: CatalogRules) -> list[Key]:
    """The directories below `top` that get catalogs of their own, inner ones first."""
    children: dict[Key, list[Key]] = {}
    for key, directory in sorted(directories.items(), key=lambda item: item[1].name):
        if key != top:
            children.setdefault(directory.parent, []).append(key)  # type: ignore[arg-type]
    most = rules.most // 2
    planned: list[Key] = []
    weights: dict[Key, int] = {}
    for key in _inner_first(top, children):
        directory = directories[key]
        below = children.get(key, []) if directory.is_open else []
        weight = 1 + directory.entries - len(below) + sum(weights[child] for child in below)
        if not directory.is_open:
            weight = 1
        for child in sorted(below, key=lambda child: (-weights[child], directories[child].name)):
            if weight <= most or weights[child] < max(rules.fewest, 2):
                break
            planned.append(child)
            weight -= weights[child] - 1
            weights[child] = 1
        weights[key] = weight
    return planned


def _inner_first(top: Key, children: Mapping[Key, list[Key]]) -> Iterator[Key]:
    """A directory after all that are in it."""
    order = [top]
    for key in order:
        order.extend(children.get(key, []))
    return reversed(order)
