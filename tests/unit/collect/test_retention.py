"""Which revisions and tags stay."""

import pytest

from mica.collect.retention import DAY_S, LEAST_GRACE_S, RetentionRules, expired_tags, rules_from
from mica.digest import Algorithm, Digest
from mica.errors import UserError
from mica.publish.settings import STANDARD_COLLECTION, CollectionSettings
from mica.repo.history import History, Tag

NOW = 100 * DAY_S
HEAD, OTHER = Digest(bytes(20), Algorithm.SHA1), Digest(b"\1" * 20, Algorithm.SHA1)


@pytest.mark.parametrize(
    ("place", "replaced_days_ago", "keeps"),
    [(1, 99, True), (2, 99, True), (3, 99, False), (3, 9, True), (50, 9, True), (3, 11, False)],
)
def test_predecessors_stay_by_number_or_by_age(place: int, replaced_days_ago: float, keeps: bool) -> None:
    rules = RetentionRules(keep_revisions=3, keep_s=10 * DAY_S, auto_tag_s=None, grace_s=0)
    assert rules.keeps(place, NOW - replaced_days_ago * DAY_S, NOW) is keeps


@pytest.mark.parametrize(
    ("name", "days_old", "root", "expires"),
    [
        ("generic-2026-01-02T03:04:05Z", 11, OTHER, True),
        ("generic_7-2026-01-02T03:04:05Z", 11, OTHER, True),
        ("generic-2026-01-02T03:04:05Z", 9, OTHER, False),
        ("generic-2026-01-02T03:04:05Z", 11, HEAD, False),
        ("generic-of-mine", 11, OTHER, False),
        ("generic-2026-01-02T03:04:05Z-x", 11, OTHER, False),
        ("release", 99, OTHER, False),
        ("trunk", 99, OTHER, False),
    ],
)
def test_only_old_automatic_tags_expire(name: str, days_old: float, root: Digest, expires: bool) -> None:
    history = History("a.example.org", {name: Tag(name, root, 3, int(NOW - days_old * DAY_S), "", 1)})
    rules = RetentionRules(keep_revisions=1, keep_s=0, auto_tag_s=10 * DAY_S, grace_s=0)
    assert bool(expired_tags(history, rules, NOW, head=HEAD)) is expires
    never = rules_from(CollectionSettings(auto_tag_days=0))
    assert not expired_tags(history, never, NOW, head=HEAD)


def test_a_grace_period_in_which_a_publication_can_lose_objects_is_refused() -> None:
    rules_from(STANDARD_COLLECTION).check()
    rules_from(CollectionSettings(grace_days=LEAST_GRACE_S / DAY_S)).check()
    with pytest.raises(UserError, match=r"4\.9 days is too short") as caught:
        rules_from(CollectionSettings(grace_days=4.9)).check()
    assert "5 days" in caught.value.hint
