"""How a repository makes its objects and catalogs. Data only, so that who reads settings loads no publisher."""

from dataclasses import dataclass

from mica.digest import Algorithm
from mica.repo.cutting import FINE_RULE, ChunkRule
from mica.repo.objects import Compression


@dataclass(frozen=True, slots=True)
class ObjectRules:
    """How a repository makes objects of file data."""

    algorithm: Algorithm = Algorithm.SHA1
    compression: Compression = Compression.ZLIB
    chunking: ChunkRule = FINE_RULE


STANDARD_OBJECTS = ObjectRules()


@dataclass(frozen=True, slots=True)
class CatalogRules:
    """How large catalogs become, in entries; 0 stands for any size. One with more than `most` is split, into catalogs
    with at most half as many; one that was made so and has fewer than `fewest` is merged with the one above it. What
    still has more than `nested_limit` or `root_limit` is refused: every client downloads a catalog whole."""

    most: int = 100_000
    fewest: int = 1_000
    nested_limit: int = 500_000
    root_limit: int = 200_000


STANDARD_CATALOGS = CatalogRules()
LAYER_CATALOGS = CatalogRules(most=500_000)
"""A node mounts a layer by its metadata image, not by its catalogs, so they are split only where they have to be."""
