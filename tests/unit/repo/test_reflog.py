"""The reflog: what is added to it, and what is refused."""

import pytest

from mica.digest import Algorithm, Digest
from mica.errors import IntegrityError
from mica.repo.history import RefKind, Reflog, extend_reflog, format_reflog, parse_reflog

OLD, NEW = (Digest(bytes([number]) * 20, Algorithm.SHA1) for number in range(2))


def test_entries_are_added_and_replaced() -> None:
    data = format_reflog(Reflog("a.example.org", {OLD: (RefKind.CATALOG, 1)}))
    more = extend_reflog(data, {NEW: (RefKind.HISTORY, 2), OLD: (RefKind.CATALOG, 3)}, "It")
    reflog = parse_reflog(more, "It")
    assert reflog == Reflog("a.example.org", {OLD: (RefKind.CATALOG, 3), NEW: (RefKind.HISTORY, 2)})
    assert parse_reflog(data, "It").refs == {OLD: (RefKind.CATALOG, 1)}


@pytest.mark.parametrize("data", [b"", b"nonsense" * 1000, format_reflog(Reflog("a.example.org"))[:1000]])
def test_what_is_no_reflog_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^It is"):
        extend_reflog(data, {NEW: (RefKind.HISTORY, 2)}, "It")
