"""Names for revisions, and the way back to one (docs/design/publishing.md, "History").

Each function is one transaction of a release manager; what it raises leaves everything as it was. Called by `cli/`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from mica.digest import Suffix
from mica.errors import NotFoundError, UserError
from mica.fetch.revisions import find_revision
from mica.publish.manager import ReleaseManager
from mica.publish.rootcatalog import look_at_root, opened_catalog
from mica.publish.transaction import Transaction
from mica.repo.catalog import Catalog, NestedCatalog
from mica.repo.difference import Change, differences
from mica.repo.entry import Flag
from mica.repo.history import MAGIC_TAGS, TRUNK_PREVIOUS, Tag
from mica.repo.manifest import Manifest


class Rollback(NamedTuple):
    """The new head, the revision whose content it has, and the tags that are gone."""

    head: Manifest
    target: Tag
    removed: tuple[Tag, ...]


def add_tag(
    manager: ReleaseManager, name: str, revision: str | None = None, *, description: str = "", move: bool = False
) -> Tag:
    """Name a revision, which is given by a tag, its number or its root catalog; the newest one if it is not given.
    Raises NotFoundError if it is not complete any more, UserError for a name that cannot be given."""
    with manager.transaction() as transaction:
        transaction.keep_content()
        target = _newest(transaction) if revision is None else _find(transaction, revision)
        transaction.history.add(target._replace(name=name, description=description, branch=""), move=move)
        return transaction.history.tags[name]


def remove_tags(manager: ReleaseManager, names: Sequence[str]) -> list[Tag]:
    """Forget names: all of them, or none. The revisions stay until garbage is collected."""
    with manager.transaction() as transaction:
        transaction.keep_content()
        return [transaction.history.remove(name) for name in dict.fromkeys(names)]


def roll_back(manager: ReleaseManager, revision: str | None = None) -> Rollback:
    """Publish the content of an older revision as the newest one. Without a name it is the revision before the newest
    one. Raises UserError, NotFoundError."""
    with manager.transaction() as transaction:
        head, history = _head(transaction), transaction.history
        if revision is None and TRUNK_PREVIOUS not in history.tags:
            raise UserError(
                f"Nothing was published into {manager.fqrn} since it was rolled back, or ever.",
                hint=f"Name a tag or the number of a revision: mica repo history {manager.fqrn}",
            )
        target = _find(transaction, revision or TRUNK_PREVIOUS)
        if target.branch:
            raise UserError(f"Tag {target.name!r} is on the branch {target.branch!r}, not on the main one.")
        if target.revision >= head.revision or target.root_catalog == head.root_catalog:
            raise UserError(f"Revision {target.revision} is the newest one of {manager.fqrn} already.")
        removed = history.drop_newer(target.revision)
        transaction.begin_again(NestedCatalog(b"", target.root_catalog, target.size))
        if target.name and target.name not in MAGIC_TAGS:
            transaction.names[target.name] = target.description
    assert transaction.published is not None
    return Rollback(transaction.published, target, tuple(removed))


def set_tag_directories(manager: ReleaseManager, *, wanted: bool) -> Manifest:
    """Begin or end to show the tagged revisions as directories; the head, which is new if that changed."""
    with manager.transaction() as transaction:
        if transaction.has_tag_directories == wanted:
            transaction.give_up()
        transaction.has_tag_directories = wanted
    assert transaction.published is not None
    return transaction.published


def _head(transaction: Transaction) -> Manifest:
    assert transaction.head is not None, "only the first transaction has none"
    return transaction.head


def _newest(transaction: Transaction) -> Tag:
    head = _head(transaction)
    reference = NestedCatalog(b"", head.root_catalog, head.root_catalog_size)
    facts, _ = look_at_root(transaction.store, transaction.work, reference)
    return Tag("", head.root_catalog, head.revision, facts.last_modified, "", facts.size)


def _find(transaction: Transaction, revision: str) -> Tag:
    """A revision that is complete: garbage collection may have taken parts of one that nothing names."""
    head, history = _head(transaction), transaction.history
    look = partial(look_at_root, transaction.store, transaction.work)
    target = find_revision(revision, head, history, lambda reference: look(reference)[0])
    kept = {head.root_catalog, *(tag.root_catalog for tag in history.tags.values())}
    if target.root_catalog not in kept:
        _check_complete(transaction, target)
    return target


def _check_complete(transaction: Transaction, target: Tag) -> None:
    """Look for every object that the newest revision does not need too. Each gets the present time, so that garbage
    collection, which may be under way, leaves it alone."""
    head, store = _head(transaction), transaction.store

    @contextlib.contextmanager
    def opened(reference: NestedCatalog) -> Iterator[Catalog]:
        store.refresh(reference.digest.object_path(Suffix.CATALOG))
        with opened_catalog(store, transaction.work, reference) as catalog:
            yield catalog

    changes = differences(
        NestedCatalog(b"", head.root_catalog, head.root_catalog_size),
        NestedCatalog(b"", target.root_catalog, target.size),
        opened,
    )
    sentence = f"Revision {target.revision} of {head.fqrn} is not complete any more"
    try:
        with contextlib.closing(changes):
            missing = next((path for change in changes for path in _needed(change) if not store.refresh(path)), None)
    except NotFoundError as error:  # a catalog
        raise NotFoundError(f"{sentence}: {error}") from error
    if missing is not None:
        raise NotFoundError(f"{sentence}: {missing} is not in {store.where}.")


def _needed(change: Change) -> Iterator[str]:
    """The objects that the later of two trees needs, and the earlier one may not."""
    if change.after is None or change.differs == ("metadata",):
        return
    entry = change.after.entry
    if not entry.is_regular or entry.flags & Flag.EXTERNAL:
        return
    if entry.digest is not None:
        yield entry.digest.object_path(Suffix.FILE)
    if entry.flags & Flag.CHUNKED:
        for chunk in change.after.catalog.chunks(change.after.row):
            yield chunk.digest.object_path(Suffix.CHUNK)
