"""Finding an older revision: by the name of a tag, by its number, by the digest of its root catalog.

A number that no tag has is found by going back from the next newer root catalog that is known, for each names the one
before it. The caller says how a root catalog is looked into, because publishers and nodes read differently. No I/O
besides; any thread.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mica.digest import Digest
from mica.errors import IntegrityError, NotFoundError
from mica.repo.catalog import Catalog, NestedCatalog
from mica.repo.history import History, Tag
from mica.repo.manifest import Manifest

_NUMBER_DIGITS = 18


class RootFacts(NamedTuple):
    """What a root catalog says of its revision; `size` in bytes of its file, 0 if it is not known."""

    revision: int
    last_modified: int
    previous: Digest | None
    size: int


Look = Callable[[NestedCatalog], RootFacts]
"""Raises NotFoundError if the storage does not have the catalog."""


def root_facts(catalog: Catalog, what: Digest, *, size: int = 0) -> RootFacts:
    """Raises IntegrityError for a catalog that is not a root."""
    if catalog.root_prefix:
        raise IntegrityError(f"Catalog {what} is not the root of a revision.")
    return RootFacts(catalog.revision, catalog.last_modified, catalog.previous_revision, size)


def find_revision(text: str, head: Manifest, history: History, look: Look) -> Tag:
    """A tag by its name, else a number, else a digest. A revision that was not found by a tag has the name ''.

    Raises NotFoundError if there is none or its root catalog is gone.
    """
    if text in history.tags:
        return history.tags[text]
    if text.isascii() and text.isdecimal() and len(text) <= _NUMBER_DIGITS:
        return find_number(int(text), head, history, look)
    try:
        digest = Digest.parse(text)
    except ValueError:
        return history.tag(text)
    return _tag_of(digest, _look(look, NestedCatalog(b"", digest, 0), f"with the root catalog {digest}", head))


def find_number(number: int, head: Manifest, history: History, look: Look) -> Tag:
    """Raises NotFoundError."""
    if number > head.revision or number < 0:
        raise NotFoundError(f"{head.fqrn} has no revision {number}: its newest is {head.revision}.")
    named = [tag for tag in history.tags.values() if not tag.branch and number <= tag.revision <= head.revision]
    nearest = min(named, key=lambda tag: (tag.revision, tag.name), default=None)
    if nearest is not None and nearest.revision == number:
        return nearest._replace(name="", description="")
    start = _newest(head) if nearest is None else nearest
    for found in _back_from(start, head, look, str(number)):
        if found.revision == number:
            return found
        if found.revision < number:
            break
    raise NotFoundError(f"{head.fqrn} has no revision {number}: the nearest one is {found.revision}.")


def all_revisions(head: Manifest, look: Look) -> Iterator[Tag]:
    """The newest revision and those before it, as far as their root catalogs are there, without names."""
    with contextlib.suppress(NotFoundError):
        yield from _back_from(_newest(head), head, look, "")


def _newest(head: Manifest) -> Tag:
    return Tag("", head.root_catalog, head.revision, head.published_at, "", head.root_catalog_size)


def _back_from(start: Tag, head: Manifest, look: Look, wanted: str) -> Iterator[Tag]:
    """A revision and those before it. Raises NotFoundError where one is gone."""
    reference: NestedCatalog | None = NestedCatalog(b"", start.root_catalog, start.size)
    newest = head.revision + 1
    while reference is not None:
        facts = _look(look, reference, wanted or f"before {newest}", head)
        if facts.revision >= newest:
            raise IntegrityError(f"Revision {facts.revision} of {head.fqrn} is said to be older than {newest}.")
        yield _tag_of(reference.digest, facts)
        newest = facts.revision
        reference = None if facts.previous is None else NestedCatalog(b"", facts.previous, 0)


def _look(look: Look, reference: NestedCatalog, what: str, head: Manifest) -> RootFacts:
    try:
        return look(reference)
    except NotFoundError as error:
        raise NotFoundError(
            f"Revision {what} of {head.fqrn} is not there any more: {error}", hint=error.hint
        ) from error


def _tag_of(digest: Digest, facts: RootFacts) -> Tag:
    return Tag("", digest, facts.revision, facts.last_modified, "", facts.size)
