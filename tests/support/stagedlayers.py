"""Staged layers of a digest: values that no store has objects for."""

from mica.convert.staging import StagedFile, StagedLayer
from mica.digest import Algorithm, Digest
from mica.publish.catalogtree import SealedCatalog, directory_entry
from mica.repo.catalog import COUNTERS, NestedCatalog
from mica.repo.catalogwriter import Counters
from mica.repo.entry import Chunk, Entry, Flag
from mica.thin.layout import hex_of


def staged_layer(digest: str) -> StagedLayer:
    name = hex_of(digest).encode("ascii")
    objects = [Digest(bytes([number]) * 20, Algorithm.SHA1) for number in range(3)]
    own = tuple(range(len(COUNTERS)))
    root = directory_entry(name)._replace(flags=Flag.DIRECTORY | Flag.NESTED_ROOT, links=3)
    image = Entry(name + b".2.erofs", 0o100644, 30, 0, 0, 0, 0, Flag.FILE | Flag.CHUNKED, None)
    facts = Entry(name + b".json", 0o100644, 40, 0, 0, 0, 0, Flag.FILE, objects[2])
    return StagedLayer(
        digest,
        f"sha256:{1:064x}",
        SealedCatalog(NestedCatalog(b"", objects[0], 4096), Counters(own, own[::-1]), root),
        (StagedFile(image, (Chunk(0, 10, objects[0]), Chunk(10, 20, objects[1]))), StagedFile(facts)),
        {"split_hardlinks": 2},
    )
