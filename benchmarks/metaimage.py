"""Metadata images: making them of a tree and of catalogs, and reading them before the kernel does."""

import contextlib
import io
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from benchmarks.harness import Pair, rows
from benchmarks.support import workspace
from mica.digest import Algorithm, digest_of
from mica.metaimage.fromcatalog import InodeMaker
from mica.metaimage.inode import Inode
from mica.metaimage.reader import read_image
from mica.metaimage.writer import write_image
from mica.publish.catalogtree import directory_entry
from mica.repo.catalogwriter import NO_COUNTS, CatalogWriter, Stamp
from mica.repo.entry import Entry, Flag, content_flags
from mica.repo.objects import Compression

_ENTRIES = 50_000
_IN_A_DIRECTORY = 10
_FLAGS = int(Flag.FILE) | content_flags(Algorithm.SHA1, Compression.ZLIB)


def _tree() -> list[tuple[bytes, Entry]]:
    """Rows as of an image's packages: a tenth of them directories."""
    tree = [(b"", directory_entry(b""))]
    for number in range(_ENTRIES // _IN_A_DIRECTORY):
        name = b"package-%05d" % number
        tree.append((b"/" + name, directory_entry(name, mtime_s=1_700_000_000)))
        for child in range(_IN_A_DIRECTORY - 1):
            size = 1 + number * child % 200_000
            digest = digest_of(b"%d %d" % (number, child))
            below = b"module-%03d.py" % child
            tree.append(
                (b"/" + name + b"/" + below, Entry(below, 0o100644, size, 1_700_000_000, 5, 0, 0, _FLAGS, digest))
            )
    return tree


def _per_second(work: Callable[[], object]) -> float:
    """Of the processor's time, since none of this waits for anything."""
    start = time.process_time()
    work()
    return _ENTRIES / (time.process_time() - start)


@rows(("image.write50k", "image.read50k"), "entries/s")
@contextlib.contextmanager
def images() -> Iterator[Mapping[str, Pair]]:
    """The image of 50,000 files and directories; the catalog of the same rows, which publishing writes as well."""
    tree = _tree()

    def write() -> None:
        maker = InodeMaker()
        inodes: Iterator[tuple[bytes, Inode]] = (
            (path, maker.make(entry, (), group=0, links=1)) for path, entry in tree
        )
        write_image(inodes, io.BytesIO())

    with workspace() as work, tempfile.TemporaryFile(dir=work) as file:

        def catalog() -> None:
            path = work / "catalog"
            path.unlink(missing_ok=True)
            writer = CatalogWriter.create(path, b"", tree[0][1])
            writer.put_rows(tree[1:])
            writer.seal(Stamp(1, 0), NO_COUNTS)

        maker = InodeMaker()
        write_image(((path, maker.make(entry, (), group=0, links=1)) for path, entry in tree), file)
        file.flush()
        yield {
            "image.write50k": Pair(lambda: _per_second(write), lambda: _per_second(catalog)),
            "image.read50k": Pair(lambda: _per_second(lambda: deque(read_image(file, "it"), maxlen=0))),
        }
