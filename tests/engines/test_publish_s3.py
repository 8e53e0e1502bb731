"""Publishing into a bucket of a real S3 server: read by plain HTTP, by several release managers, with faults at every
request, and killed."""

import contextlib
import itertools
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from tests.support.cli import mica
from tests.support.noise import noise
from tests.support.repositories import FQRN, Repository, read_back
from tests.support.s3proxy import (
    Delay,
    Fault,
    HangUp,
    LoseAnswer,
    Refuse,
    S3Proxy,
    S3Request,
    Truncate,
    run_until,
    s3_proxy,
)
from tests.support.s3repositories import S3Repository, add_archive, copied, make_s3_repository, publish_archive
from tests.support.seaweed import READER, WRITER, S3Server, s3_server
from tests.support.tars import END, member
from tests.support.tools import need
from tests.support.waiting import eventually
from tests.support.zygote import Zygote, zygote

from mica.digest import Suffix
from mica.errors import LostRaceError, MicaError, TemporaryError
from mica.fetch.counters import TrafficCounter
from mica.fetch.download import HttpFetcher
from mica.fetch.routes import Routes
from mica.publish.check import check_repository
from mica.publish.transaction import REFLOG
from mica.repo.manifest import NAME as MANIFEST
from mica.store.opening import open_store

__all__ = ["s3_server", "zygote"]

pytestmark = pytest.mark.engines

KILLED_AT = 32


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> S3Repository:
    repository = make_s3_repository(tmp_path_factory.mktemp("template"), s3_server)
    publish_archive(repository, archive_of("old"), b"/data")
    return repository


@pytest.fixture
def repository(template: S3Repository, tmp_path: Path, s3_server: S3Server) -> S3Repository:
    return copied(template, tmp_path / "repository", s3_server)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[S3Proxy]:
    with s3_proxy(s3_server.endpoint) as proxy:
        yield proxy


def archive_of(label: str) -> bytes:
    """Small files, one in chunks, and one that an earlier revision has too."""
    files = {f"{label}/{number}": f"{label} {number}".encode() * 40 for number in range(8)}
    files |= {f"{label}/large": noise(40_000), "common": b"the same in every revision"}
    return b"".join(member(name.encode(), data) for name, data in files.items()) + END


# Readers


def errors_by_http(repository: S3Repository, url: str, work: Path) -> list[str]:
    with contextlib.closing(HttpFetcher(Routes([url]), counter=TrafficCounter())) as fetcher:
        found = check_repository(fetcher, FQRN, [repository.master_key], objects="hash", work=work)
        return [finding.sentence for finding in found if finding.severity == "error"]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def nginx(work: Path, target: str) -> Iterator[str]:
    """Its URL; it keeps what it fetched, as a site's cache does."""
    program = need("nginx", "nginx")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    work.mkdir()
    places = "".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (work / "nginx.conf").write_text(
        f"daemon off; master_process off; pid nginx.pid; error_log stderr; events {{ }}"
        f"http {{ access_log off; {places} proxy_cache_path {work}/kept keys_zone=kept:1m;"
        f"server {{ listen 127.0.0.1:{port}; location /cvmfs/{FQRN}/ {{"
        f" proxy_pass {target}/; proxy_cache kept; proxy_http_version 1.1; }} }} }}\n"
    )
    with subprocess.Popen([program, "-p", work, "-e", "stderr", "-c", "nginx.conf"]) as process:
        try:
            assert eventually(lambda: is_open(port))
            yield f"http://127.0.0.1:{port}/cvmfs/{FQRN}"
        finally:
            process.terminate()


def test_readers_need_only_http(repository: S3Repository, s3_server: S3Server, tmp_path: Path) -> None:
    url = s3_server.url(repository.storage)
    assert errors_by_http(repository, url, tmp_path) == []
    with nginx(tmp_path / "nginx", url) as cached:
        assert errors_by_http(repository, cached, tmp_path) == []
        # A copy of the keys and a URL is all that a client has.
        known = Repository(FQRN, repository.state, tmp_path / "none", repository.keys)
        seen = read_back(known, tmp_path / "cache", url=cached)
        assert b"/data/old/large" in seen
        publish_archive(repository, archive_of("new"), b"/data")
        assert errors_by_http(repository, url, tmp_path) == []


def test_keys_and_headers(repository: S3Repository, s3_server: S3Server) -> None:
    url = s3_server.url(repository.storage)
    catalog = repository.head().root_catalog.object_path(Suffix.CATALOG)
    expected = {
        ".cvmfspublished": ("application/x-cvmfs", "max-age=61"),
        ".cvmfswhitelist": ("application/x-cvmfs", "max-age=61"),
        ".cvmfsreflog": ("application/x-cvmfs", "max-age=61"),
        ".cvmfs_master_replica": ("application/x-cvmfs", "max-age=61"),
        catalog: ("application/octet-stream", "max-age=259200"),
    }
    for path, headers in expected.items():
        with urllib.request.urlopen(f"{url}/{path}", timeout=30) as answer:
            assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == headers, path
    with open_store(repository.storage, repository.direct) as store:
        others = {entry.path for entry in store.entries("") if not entry.path.startswith("data/")}
    assert others == {path for path in expected if not path.startswith("data/")}


def test_what_is_there_is_not_sent_again(repository: S3Repository, proxy: S3Proxy) -> None:
    repository.by(proxy.endpoint)
    archive = archive_of("new")
    publish_archive(repository, archive, b"/data")
    first = [key for key in proxy.puts() if "/data/" in key]
    assert len(first) > 10
    assert len(set(first)) == len(first)
    proxy.requests.clear()
    publish_archive(repository, archive, b"/data")
    again = {key for key in proxy.puts() if "/data/" in key}
    assert not [key for key in again if not key.endswith(("C", "H"))]


# Several release managers


@pytest.mark.parametrize("has_conditions", [True, False], ids=["conditions", "leases"])
def test_of_release_managers_at_the_same_moment_one_wins_each_revision(
    s3_server: S3Server, tmp_path: Path, *, has_conditions: bool
) -> None:
    """Each has a state of its own, so none sees the lock of another, and each begins when all have read the head."""
    first = make_s3_repository(tmp_path / "repository", s3_server, has_conditions=has_conditions)
    managers = [first._replace(state=tmp_path / f"state-{number}") for number in range(3)]
    for one in managers:
        shutil.copytree(first.state, one.state)
    names = itertools.count()
    published: list[bytes] = []
    refusals: list[LostRaceError] = []
    for _ in range(6):
        before = first.head()
        together = threading.Barrier(len(managers))

        def publish(one: S3Repository, name: bytes, together: threading.Barrier) -> bytes | None:
            try:
                with one.manager() as manager, manager.transaction() as transaction:
                    together.wait(60)
                    add_archive(transaction, member(b"file", name) + END, b"/" + name)
            except LostRaceError as error:
                refusals.append(error)
                return None
            return name

        with ThreadPoolExecutor(len(managers)) as pool:
            running = [pool.submit(publish, one, b"made-%d" % next(names), together) for one in managers]
            results = [each.result() for each in running]
        winners = [name for name in results if name is not None]
        assert len(winners) == 1
        assert all("was replaced by another process" in str(refusal) for refusal in refusals)
        published += winners
        assert first.head().revision == before.revision + 1
    assert first.names() == set(published)
    assert first.errors(tmp_path) == []


# Faults

FAULTS: dict[str, Fault] = {
    "slow down": Refuse(503, "SlowDown"),
    "internal error": Refuse(500, "InternalError"),
    "hangs up": HangUp(),
    "hangs up in the body": HangUp(after_bytes=3),
    "loses the answer": LoseAnswer(),
    "truncates": Truncate(5),
    "delays": Delay(0.3),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("rest", [0, 1, 2])
def test_every_third_request_fails_once(
    repository: S3Repository, proxy: S3Proxy, tmp_path: Path, fault: Fault, rest: int
) -> None:
    failed: set[tuple[str, str]] = set()

    def fail_once(request: S3Request) -> Fault:
        name = (request.method, request.key)
        if request.number % 3 == rest and name not in failed and not name[1].endswith(".cvmfsnever"):
            failed.add(name)
            return fault
        return None

    repository.by(proxy.endpoint)
    proxy.fault = fail_once
    manifest = publish_archive(repository, archive_of("new"), b"/data")
    proxy.fault = lambda request: None
    assert len(failed) >= 8
    assert repository.head() == manifest
    assert repository.errors(tmp_path) == []
    assert repository.names(b"/data") >= {b"old", b"new", b"common"}


@pytest.mark.parametrize(
    "fault", [Refuse(503, "SlowDown"), LoseAnswer(), HangUp()], ids=["slow down", "lost", "hangs up"]
)
def test_a_server_that_fails_for_good_from_any_request_on(
    repository: S3Repository, proxy: S3Proxy, tmp_path: Path, fault: Fault
) -> None:
    repository.by(proxy.endpoint)
    publish_archive(repository, archive_of("counted"), b"/counted")
    total = len(proxy.requests)
    outcomes = set()
    for number in sorted({*range(1, total, total // 6), *range(total - 3, total + 1)}):
        before = repository.head()
        proxy.requests.clear()
        proxy.fault = lambda request, number=number: fault if request.number >= number else None
        error: MicaError | None = None
        try:
            publish_archive(repository, archive_of(f"new-{number}"), b"/data")
        except MicaError as failure:
            error = failure
        proxy.fault = lambda request: None
        after = repository.head()
        outcomes.add((error is None, after.revision - before.revision))
        assert error is None or isinstance(error, TemporaryError), error
        assert after.revision - before.revision in {0, 1}
        assert after.revision > before.revision or error is not None
        assert repository.errors(tmp_path) == [], number
    assert (False, 0) in outcomes
    proxy.fault = lambda request: None
    publish_archive(repository, archive_of("last"), b"/data")
    assert repository.errors(tmp_path) == []


# Killed


def test_killed_at_any_request_leaves_the_old_revision_or_the_new_one(
    repository: S3Repository, proxy: S3Proxy, zygote: Zygote, tmp_path: Path
) -> None:
    """Before the request reaches the server, or after it was carried out."""
    repository.by(proxy.endpoint)
    archive = tmp_path / "new.tar"

    def publish(label: str, is_point: Callable[[S3Request], bool], *, late: bool) -> int:
        archive.write_bytes(archive_of(f"new-{label}"))
        proxy.requests.clear()
        arguments = ["repo", "ingest", FQRN, archive, "/data/new", "--catalog", "--state", repository.state]
        return run_until(proxy, zygote, arguments, tmp_path / "output", is_point, late=late)

    def has_number(number: int, request: S3Request) -> bool:
        return request.number == number

    def replaces(name: str, request: S3Request) -> bool:
        return request.method == "PUT" and request.key.endswith(name)

    for number in range(2):  # the second one replaces what is there, as all that follow
        assert publish(f"counted-{number}", lambda request: False, late=False) == 0
    total = len(proxy.requests)
    numbers = sorted({1 + number * (total - 1) // (KILLED_AT - 1) for number in range(KILLED_AT)})
    points = [(str(number), partial(has_number, number), number % 2 == 0) for number in numbers]
    for name in (REFLOG, MANIFEST):
        points += [(name.strip("."), partial(replaces, name), late) for late in (False, True)]
    killed = 0
    for label, is_point, late in points:
        before = repository.head()
        killed += publish(label, is_point, late=late) == -signal.SIGKILL
        is_new = repository.head().revision == before.revision + 1
        assert is_new or repository.head() == before
        if not label.isdigit():
            assert is_new == (label == MANIFEST.strip(".") and late), label
        assert repository.errors(tmp_path) == [], f"killed at {label} of {total}"
    assert killed >= 30
    assert publish("last", lambda request: False, late=False) == 0
    assert repository.errors(tmp_path) == []


# Refusals


def create(directory: Path, server: S3Server, storage: str, **environment: str) -> tuple[int, str]:
    outcome = mica(
        directory / "state", "repo", "create", "other.example.org", "--storage", storage, "--s3-endpoint",
        server.endpoint, timeout_s=120, HOME=str(directory), AWS_EC2_METADATA_DISABLED="true", **environment,
    )  # fmt: skip
    assert not list((directory / "state").rglob("*.key")), "what was begun is removed"
    assert WRITER.secret not in outcome.stderr
    return outcome.code, outcome.sentence


def keys(key_id: str, secret: str, **more: str) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secret, **more}


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (keys(WRITER.key_id, "wrong"), "refuses the secret key"),
        (keys("NOBODY", "wrong"), "does not know the access key"),
        (keys(*READER), "Read-only or closed for these credentials (AccessDenied)"),
        ({}, "There are no credentials for s3://"),
        ({"AWS_ACCESS_KEY_ID": "A"}, "only one is set"),
    ],
    ids=["secret", "key", "read-only", "none", "half"],
)
def test_credentials_that_do_not_fit_are_told(
    tmp_path: Path, s3_server: S3Server, environment: dict[str, str], sentence: str
) -> None:
    code, told = create(tmp_path, s3_server, s3_server.new_storage(), **environment)
    assert code == 1
    assert sentence in told


def test_a_missing_bucket_is_told(tmp_path: Path, s3_server: S3Server) -> None:
    code, told = create(tmp_path, s3_server, "s3://no-such-bucket/x", **keys(*WRITER))
    assert code == 1
    assert "s3://no-such-bucket/x: there is no bucket of that name" in told


def test_a_server_that_is_not_there_is_told(tmp_path: Path, s3_server: S3Server) -> None:
    code, told = create(tmp_path, s3_server._replace(endpoint="http://127.0.0.1:9"), "s3://bucket/x", **keys(*WRITER))
    assert code == 4
    assert "http://127.0.0.1:9 cannot be reached" in told


def test_a_storage_that_is_taken_is_told(tmp_path: Path, s3_server: S3Server, repository: S3Repository) -> None:
    code, told = create(tmp_path, s3_server, repository.storage, **keys(*WRITER))
    assert code == 1
    assert told == f"{repository.storage} already holds a published repository."
    assert repository.errors(tmp_path) == []


@pytest.mark.parametrize(
    ("refusal", "code", "sentence"),
    [
        (Refuse(400, "ExpiredToken"), 1, "the credentials have expired"),
        (Refuse(400, "AuthorizationHeaderMalformed"), 1, "the bucket is not in region us-east-1"),
        (Refuse(301, "PermanentRedirect"), 1, "the bucket is not in region us-east-1"),
        (Refuse(403, "RequestTimeTooSkewed"), 1, "the clock of this machine is not that of"),
        (Refuse(403, "AccessDenied"), 1, "Read-only or closed"),
        (Refuse(507, "XMinioStorageFull"), 1, "No space left"),
    ],
    ids=["expired", "region", "redirect", "clock", "read-only", "full"],
)
def test_what_a_server_refuses_later_is_told(
    repository: S3Repository, proxy: S3Proxy, tmp_path: Path, refusal: Refuse, code: int, sentence: str
) -> None:
    repository.by(proxy.endpoint)
    before = repository.head()
    proxy.fault = lambda request: refusal if request.method == "PUT" else None
    with pytest.raises(MicaError, match=sentence) as told:
        publish_archive(repository, archive_of("new"), b"/data")
    proxy.fault = lambda request: None
    assert told.value.exit_code == code
    assert repository.storage in str(told.value)
    assert repository.head() == before
    assert repository.errors(tmp_path) == []
    publish_archive(repository, archive_of("new"), b"/data")
    assert repository.errors(tmp_path) == []


def test_a_lost_answer_to_the_manifest_is_no_failure(repository: S3Repository, proxy: S3Proxy) -> None:
    repository.by(proxy.endpoint)
    lost: list[str] = []

    def lose_once(request: S3Request) -> Fault:
        if request.method == "PUT" and request.key.endswith(MANIFEST) and not lost:
            lost.append(request.key)
            return LoseAnswer()
        return None

    proxy.fault = lose_once
    manifest = publish_archive(repository, archive_of("new"), b"/data")
    assert lost
    assert repository.head() == manifest
