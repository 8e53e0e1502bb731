"""A provider around one of layer trees, with sheets by which overlayfs reads their signs. Engines lay sheets by
themselves, since they have other unions too (`engine/signsheets.py`)."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mica import linux
from mica.files import mapped_os_errors
from mica.layers.provider import LayerProvider
from mica.layers.stack import LayerStack
from mica.layers.trees import read_implied
from mica.thin.descriptor import ThinDescriptor
from mica.union.belowlinks import Sheet
from mica.union.directories import Directory, Tree, make_directories
from mica.union.layerplan import shown_layers
from mica.union.sheetfiles import make_sheet


@dataclass(frozen=True, slots=True)
class ReadableTrees:
    """The trees that show, with the sheets that they need, and on top the implied directories with the attributes that
    they should have. Sheets and directories are made in `directory`, which exists. `one_by_one`: see `LayerStack`."""

    provider: LayerProvider
    directory: Path
    one_by_one: bool | None = None

    def check(self, descriptor: ThinDescriptor) -> None:
        self.provider.check(descriptor)

    @contextlib.contextmanager
    def layers(self, descriptor: ThinDescriptor) -> Iterator[LayerStack]:
        """Call it in a private mount namespace: the directory is shared by all runs."""
        with self.provider.layers(descriptor) as real, contextlib.ExitStack() as stack:
            yield self._readable(real, _made_directories(self.directory, stack))

    def _readable(self, real: LayerStack, places: Iterator[Path]) -> LayerStack:
        sheets: list[Path] = []

        def lay(sheet: Sheet, tree: Tree) -> Path:
            sheets.append(next(places))
            make_sheet(sheets[-1], sheet, tree.path)
            return sheets[-1]

        def make(directories: Sequence[Directory]) -> Path:
            place = next(places)
            make_directories(place, directories)
            return place

        with mapped_os_errors("look at the layers"):
            lower = shown_layers([Tree(path, read_implied(path)) for path in real.lower], lay, make)
        return replace(real, lower=tuple(lower), has_stubs=bool(sheets), one_by_one=self.one_by_one)


def _made_directories(directory: Path, stack: contextlib.ExitStack) -> Iterator[Path]:
    """Empty directories in memory, until the stack is left."""
    for number in itertools.count():
        place = directory / f".directories-{number}"
        place.mkdir(mode=0o700, exist_ok=True)
        linux.mount("mica", place, "tmpfs", flags=linux.MS_NOSUID | linux.MS_NODEV, data="mode=0700")
        stack.callback(linux.umount2, place, linux.MNT_DETACH)
        yield place
