"""Collecting garbage in a bucket of a real S3 server: what a publisher refreshes in the last moment, and faults at
every request that changes something."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.garbage import check_complete, objects_in, wanted_objects
from tests.support.s3proxy import HangUp, LoseAnswer, S3Proxy, S3Request, s3_proxy
from tests.support.s3repositories import S3Repository, copied, make_s3_repository, publish_archive
from tests.support.seaweed import S3Server, s3_server
from tests.support.tars import END, member

from mica.collect.collection import opened_collection
from mica.collect.report import CollectionReport
from mica.collect.retention import RetentionRules
from mica.errors import MicaError
from mica.publish.manager import ReleaseManager
from mica.store.s3 import S3Store
from mica.store.s3access import parse_place
from mica.store.s3client import S3Client, S3Limits
from mica.store.s3turns import DIRECTORY as TURNS
from mica.store.s3turns import Turns

__all__ = ["s3_server"]

pytestmark = pytest.mark.engines

RULES = RetentionRules(keep_revisions=1, keep_s=-5, auto_tag_s=None, grace_s=-5)
OBJECT = "data/ab/" + 38 * "c"
CHANGES = {"PUT", "POST", "DELETE"}
POINTS = 8
QUICK_END = S3Limits(connect_s=2, request_s=5, retries=0, retry_s=1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> S3Repository:
    repository = make_s3_repository(tmp_path_factory.mktemp("template"), s3_server)
    for label in ("one", "two", "three"):
        files = {f"{label}/{number}": f"{label} {number}".encode() * 40 for number in range(6)}
        archive = b"".join(member(name.encode(), data) for name, data in files.items()) + END
        publish_archive(repository, archive, b"/data")
    return repository


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[S3Proxy]:
    with s3_proxy(s3_server.endpoint) as proxy:
        yield proxy


def collect(manager: ReleaseManager) -> CollectionReport:
    with opened_collection(manager, RULES, wait_s=5) as collection:
        return collection.run()


def test_old_revisions_leave_a_bucket(template: S3Repository, tmp_path: Path, s3_server: S3Server) -> None:
    repository = copied(template, tmp_path / "repository", s3_server)
    with repository.manager() as manager:
        wanted = wanted_objects(manager)
        report = collect(manager)
        assert report.survey.removed.objects > 0
        assert objects_in(manager.store) == wanted
        assert list(manager.store.entries(f"{TURNS}/")) == []
    assert repository.errors(tmp_path) == []


def test_faults_at_every_change_break_nothing(
    template: S3Repository, tmp_path: Path, s3_server: S3Server, proxy: S3Proxy
) -> None:
    """The connection ends before the request arrives, or before its answer does; then nothing answers any more."""
    counted = copied(template, tmp_path / "counted", s3_server).by(proxy.endpoint)
    seen: list[S3Request] = []

    def count(request: S3Request) -> None:
        if request.method in CHANGES:
            seen.append(request)

    proxy.fault = count
    with counted.manager() as manager:
        collect(manager)
    total = len(seen)
    assert total >= POINTS
    ended = 0
    for number in sorted({1 + point * (total - 1) // (POINTS - 1) for point in range(POINTS)}):
        for last in (HangUp(), LoseAnswer()):
            repository = copied(template, tmp_path / f"{number}-{type(last).__name__}", s3_server).by(proxy.endpoint)
            changes = iter(range(1, 1 << 30))

            def fail(request: S3Request) -> HangUp | LoseAnswer | None:
                if request.method not in CHANGES:
                    return None
                now = next(changes)  # noqa: B023 - called in this round only
                return last if now == number else HangUp() if now > number else None  # noqa: B023

            proxy.fault = fail
            with repository.manager(QUICK_END) as manager:
                try:
                    collect(manager)
                except MicaError:
                    ended += 1
            proxy.fault = lambda request: None
            with repository.manager() as manager:
                check_complete(manager)
                for claim in manager.store.entries(f"{TURNS}/"):
                    manager.store.delete(claim.path)  # it would expire
                collect(manager)
                check_complete(manager)
                assert objects_in(manager.store) == wanted_objects(manager)
    assert ended >= POINTS, "after the last change nothing fails any more"


class SlowClient(S3Client):
    """Waits before it deletes objects."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.is_about_to_delete = threading.Event()
        self.may_delete = threading.Event()

    def delete(self, keys: list[str], *, doing: str) -> None:  # type: ignore[override]
        if OBJECT in keys:
            self.is_about_to_delete.set()
            assert self.may_delete.wait(60)
        super().delete(keys, doing=doing)


def test_what_is_refreshed_while_it_is_deleted_is_there_afterwards(s3_server: S3Server) -> None:
    """The sweep has seen that it is old, and its request to delete it is on its way when a publisher comes."""
    place, options = parse_place(s3_server.new_storage()), s3_server.options()
    slow = SlowClient(place, options)
    with S3Store(slow, refresh_after_s=1) as sweeper, S3Store(S3Client(place, options), refresh_after_s=1) as publisher:
        publisher.put(OBJECT, b"content")
        publisher.sync()
        time.sleep(3)
        cut = publisher.clock()
        with ThreadPoolExecutor(3) as pool:
            deleting = pool.submit(sweeper.delete_many, [OBJECT], unless_changed_since=cut)
            assert slow.is_about_to_delete.wait(60)

            def put() -> None:
                publisher.put(OBJECT, b"content")
                publisher.sync()

            putting = pool.submit(put)
            refreshing = pool.submit(S3Store(S3Client(place, options)).refresh, OBJECT)
            time.sleep(2)
            assert not putting.done(), "it waits for the sweep"
            assert not refreshing.done()
            slow.may_delete.set()
            assert deleting.result(60) == 1
            putting.result(60)
            refreshing.result(60)
        assert publisher.has(OBJECT)
        assert sweeper.delete_many([OBJECT], unless_changed_since=cut) == 0, "it is young"
        assert list(publisher.entries(f"{TURNS}/")) == []


def test_deleting_waits_for_those_who_refresh(s3_server: S3Server) -> None:
    place, options = parse_place(s3_server.new_storage()), s3_server.options()
    one, other = Turns(S3Client(place, options)), Turns(S3Client(place, options))
    with ThreadPoolExecutor(1) as pool:

        def delete() -> None:
            with other.deleting() as check:
                check()

        with one.refreshing(), one.refreshing():
            deleting = pool.submit(delete)
            time.sleep(2)
            assert not deleting.done()
        deleting.result(60)
    with one.refreshing():
        pass


def test_the_claim_of_a_process_that_died_expires(s3_server: S3Server) -> None:
    place, options = parse_place(s3_server.new_storage()), s3_server.options()
    client = S3Client(place, options)
    for kind in ("refresh", "delete"):
        client.put(f"{TURNS}/{kind}-of-the-dead", b"", {}, doing="test")
    turns = Turns(client, life_s=3)
    with turns.refreshing():
        pass
    with turns.deleting():
        pass
