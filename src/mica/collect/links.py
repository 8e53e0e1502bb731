"""Layers that links in a repository lead into, as other programs and people put them there: `/app` -> `.layers/…`.

Reads all catalogs of a revision but those of the layers, of mica's own links to them, and of old revisions. One thread.
"""

from pathlib import Path

from mica.collect.wishes import linked_layer
from mica.digest import path_hash
from mica.publish.rootcatalog import opened_catalog
from mica.repo.catalog import NestedCatalog
from mica.store.base import ObjectSource
from mica.thin.layout import CHAINS, LAYERS

_PART = b".layers/"
_OWN = frozenset(path_hash(b"%s/%02x" % (CHAINS, number)) for number in range(256))


def linked_layers(source: ObjectSource, root: NestedCatalog, work: Path) -> set[str]:
    """By the hex of their digests. Raises NotFoundError or IntegrityError if a catalog is missing or damaged."""
    found: set[str] = set()
    pending = [root]
    while pending:
        reference = pending.pop()
        with opened_catalog(source, work, reference) as catalog:
            links = [target for target, directory in catalog.link_targets(_PART) if directory not in _OWN]
            found |= {layer for target in links if (layer := linked_layer(target))}
            pending += [nested for nested in catalog.nested() if not nested.path.startswith((LAYERS, CHAINS))]
    return found
