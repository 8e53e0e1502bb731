"""What `mica status` says of mounts, in words."""

import pytest

from mica.cli import mountstatus as mounts
from mica.fetch.localshare import LocalShare
from mica.mount.status import MountStatus
from mica.mount.statusreport import Report, State

STATUS = MountStatus(
    fqrn="x.example.org",
    revision=7,
    root_catalog="78c3bcb1a75c5d154780769597bd7664a8cc6dbd",
    root_catalog_size=4096,
    published_at=1_700_000_000,
    follows=True,
    host="http://host/cvmfs/x.example.org",
    proxy="",
    cache="/nonexistent/cache",
    passthrough_refusal="",
    passthrough_from_bytes=131072,
    passthrough_open_files=1,
    pid=1,
    version="1",
    uptime_s=5,
    requests=11,
    transferred_bytes=12_345_678,
    objects_fetched=10,
    files_opened=9,
    io_errors=2,
)
SERVING = Report("x.example.org", b"/mnt/a\nb", State.SERVING, STATUS)
GONE = Report("x.example.org", b"/mnt", State.GONE)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (LocalShare(4, 1, 3_200_000, 800_000, 2, 0), "25.0 % of 3.1 MiB, 1 of 4 files"),
        (LocalShare(4, 1, 3_200_000, 0, 9, 3), "0.0 % of 3.1 MiB, 1 of 4 files; 3 of 9 catalogs not looked into"),
        (LocalShare(0, 0, 0, 0, 1, 0), "100.0 % of 0 B, 0 of 0 files"),
    ],
)
def test_the_share_in_words(share: LocalShare, text: str) -> None:
    assert mounts._share_text(mounts._Share(share)) == text


def test_what_is_said_of_a_mount() -> None:
    share = mounts._Share(None, "the cache is gone")
    thing = mounts._thing(SERVING, share)
    assert thing.title == "Repository x.example.org at /mnt/a\\x0ab"
    assert thing.lines == {
        "state": "serving revision 7 for 5 s, process 1",
        "server": "http://host/cvmfs/x.example.org",
        "cache": "/nonexistent/cache",
        "local": "unknown: the cache is gone",
        "fetched": "11.8 MiB in 11 requests",
        "opened": "9 files; 2 reads failed",
        "passthrough": "from 128.0 KiB",
    }
    assert mounts._thing(GONE, None).lines == {"state": "its server is gone: mica umount /mnt"}
    through = SERVING._replace(status=STATUS._replace(proxy="http://proxy:3128"))
    assert mounts._thing(through, share).lines["server"] == "http://host/cvmfs/x.example.org through http://proxy:3128"


def test_nothing_is_counted_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_share", pytest.fail)
    share = mounts._share_of(SERVING, count=False)
    assert share == mounts._Share(None, "not counted; --local counts")
    assert mounts._share_text(share) == share.reason
    assert mounts._share_of(GONE, count=True) is None


def test_the_reason_why_nothing_passes_through_is_shown() -> None:
    assert mounts._passthrough_text(STATUS._replace(passthrough_refusal="because")) == "no: because"


def test_facts_for_programs() -> None:
    share = LocalShare(4, 1, 3_200_000, 800_000, 2, 0)
    facts = mounts._facts(SERVING, mounts._Share(share))
    assert facts.items() >= STATUS._asdict().items()
    assert facts["local"] == share._asdict()
    assert (facts["repository"], facts["state"], facts["local_unknown"]) == ("x.example.org", "serving", "")
    assert mounts._facts(GONE, None) == {"repository": "x.example.org", "directory": "/mnt", "state": "gone"}
    assert mounts._facts(SERVING, mounts._Share(None, "because"))["local"] is None


@pytest.mark.parametrize(("changes", "word"), [({}, "gone"), ({"root_catalog": "no digest"}, "names no catalog")])
def test_a_share_that_cannot_be_told(changes: dict[str, str], word: str) -> None:
    share = mounts._share(STATUS._replace(**changes))  # type: ignore[arg-type]
    assert share.value is None
    assert word in share.reason
