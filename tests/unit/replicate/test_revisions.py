"""Which revisions a replica keeps."""

from tests.support.catalogs import some_digest

from mica.replicate.revisions import kept_revisions
from mica.repo.history import History, RefKind, Reflog, Tag
from mica.repo.manifest import Manifest


def test_a_replica_keeps_what_its_source_has() -> None:
    head, tagged, earlier = (some_digest(text) for text in ("head", "tagged", "earlier"))
    manifest = Manifest(head, 1, 240, 3, "a.example.org", some_digest("certificate"), 1)
    history = History("a.example.org", {"v1": Tag("v1", tagged, 1, 1, "", 1)})
    reflog = Reflog(
        "a.example.org", {earlier: (RefKind.CATALOG, 1), some_digest("certificate"): (RefKind.CERTIFICATE, 1)}
    )
    assert kept_revisions(manifest, history, reflog) == {head, tagged, earlier}
    assert kept_revisions(manifest, history, None) == {head, tagged}
