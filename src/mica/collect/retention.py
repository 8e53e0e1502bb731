"""Which revisions and automatic tags stay. Pure.

The newest revision stays, and every one that a tag names. Of those before it the newest ones stay, and those that were
the newest one at any time within a span: nodes may still have them mounted. Automatic tags go when they are old; tags
that somebody gave stay until somebody removes them.
"""

import re
from dataclasses import dataclass

from mica.convert.staging import STAGED_FOR_S
from mica.digest import Digest
from mica.errors import UserError
from mica.publish.duration import LONGEST_MAKING_S, LONGEST_PUBLICATION_S
from mica.publish.settings import CollectionSettings
from mica.repo.history import History, Tag
from mica.store.base import REFRESH_AFTER_S

DAY_S = 86400
LEAST_GRACE_S = REFRESH_AFTER_S + LONGEST_MAKING_S + STAGED_FOR_S + LONGEST_PUBLICATION_S + DAY_S / 2
"""What an object that is needed may be old when its revision is published, and half a day for clocks that disagree
(docs/design/garbage-collection.md)."""
_AUTOMATIC = re.compile(r"generic(?:_[0-9]+)?-[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """`keep_revisions` counts the newest one. `keep_s`: how long the newest revision's predecessors stay after they
    were replaced, and images and layers after nobody wanted them. `auto_tag_s`: the age at which automatic tags go;
    None if they stay. `grace_s`: objects that were put or refreshed within it stay whatever needs them."""

    keep_revisions: int
    keep_s: float
    auto_tag_s: float | None
    grace_s: float

    def check(self) -> None:
        """Raises UserError for a grace period in which a publication could lose what it needs."""
        if self.grace_s < LEAST_GRACE_S:
            raise UserError(
                f"A grace period of {self.grace_s / DAY_S:g} days is too short: a publication that goes on could lose"
                " objects.",
                hint=f"It has to be at least {LEAST_GRACE_S / DAY_S:g} days.",
            )

    def keeps(self, place: int, replaced_at: float, now: float) -> bool:
        """Whether a predecessor stays, the `place`-th before the newest one, that another one replaced at a time."""
        return place < self.keep_revisions or replaced_at >= now - self.keep_s


def rules_from(settings: CollectionSettings) -> RetentionRules:
    return RetentionRules(
        settings.keep_revisions,
        settings.keep_days * DAY_S,
        settings.auto_tag_days * DAY_S if settings.auto_tag_days else None,
        settings.grace_days * DAY_S,
    )


def expired_tags(history: History, rules: RetentionRules, now: float, *, head: Digest) -> list[Tag]:
    """Automatic tags that are due, the oldest first. The newest revision keeps its own."""
    if rules.auto_tag_s is None:
        return []
    oldest = now - rules.auto_tag_s
    due = [
        tag
        for tag in history.tags.values()
        if _AUTOMATIC.fullmatch(tag.name) and tag.timestamp < oldest and tag.root_catalog != head
    ]
    return sorted(due, key=lambda tag: (tag.revision, tag.name))
