"""Which revisions a replica keeps when its garbage is collected: those that its source still has.

The seam between replication and the collector (docs/design/replication.md): the collector is given these roots and
keeps everything below them. Pure.
"""

from mica.digest import Digest
from mica.repo.history import History, RefKind, Reflog
from mica.repo.manifest import Manifest


def kept_revisions(manifest: Manifest, history: History, source: Reflog | None) -> frozenset[Digest]:
    """The root catalogs of the newest revision, of all tags, and of all that is in the source's reflog. Without a
    reflog of the source nothing else is kept."""
    roots = {manifest.root_catalog, *(tag.root_catalog for tag in history.tags.values())}
    if source is not None:
        roots |= {digest for digest, (kind, _) in source.refs.items() if kind == RefKind.CATALOG}
    return frozenset(roots)
