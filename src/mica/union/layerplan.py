"""The layers that make a union show what the image's layers mean, however they are mounted: those that show, the sheets
that they need between them, and on top the implied directories with the attributes that they should have. Any thread.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from mica.union.belowlinks import Sheet, lay_sheets
from mica.union.directories import Directory, Tree, plan_directories, visible_trees


def shown_layers(
    trees: Sequence[Tree],
    make_sheet: Callable[[Sheet, Tree], Path],
    make_directories: Callable[[Sequence[Directory]], Path],
) -> list[Path]:
    """Top first, as `trees` are. What is needed besides them is made by the callables, which return where it is.

    Raises OSError, what the callables raise, and UserError for a link that does not lead to a directory.
    """
    trees = lay_sheets(visible_trees(trees), make_sheet)
    paths = [tree.path for tree in trees]
    if directories := plan_directories(trees):
        paths.insert(0, make_directories(directories))
    return paths
