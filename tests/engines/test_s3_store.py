"""The contract of stores on a real S3 server, with its conditions and without."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import pytest
from tests.contracts.object_store import ObjectStoreContract
from tests.support.s3proxy import Ignore, Refuse, S3Proxy, S3Request, s3_proxy
from tests.support.seaweed import WRITER, S3Server, s3_server

from mica.store.base import REFRESH_AFTER_S
from mica.store.opening import probe_storage
from mica.store.s3 import S3Store
from mica.store.s3access import parse_place
from mica.store.s3client import S3Client, S3Limits

__all__ = ["s3_server"]

pytestmark = pytest.mark.engines

QUICK = S3Limits(connect_s=2, request_s=30, retries=1, retry_s=10)
PREFIX = "images.example.org"
CONDITIONS = ("If-Match", "If-None-Match")


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[S3Proxy]:
    with s3_proxy(s3_server.endpoint) as proxy:
        yield proxy


class S3Faults:
    """What a server answers then, in place of the real one."""

    def __init__(self, proxy: S3Proxy) -> None:
        self._proxy = proxy

    def gone(self) -> contextlib.AbstractContextManager[None]:
        return self._refusing({"GET", "HEAD", "PUT", "POST", "DELETE"}, Refuse(404, "NoSuchBucket"))

    def full(self) -> contextlib.AbstractContextManager[None]:
        return self._refusing({"PUT"}, Refuse(507, "XMinioStorageFull"))

    def read_only(self) -> contextlib.AbstractContextManager[None]:
        return self._refusing({"PUT", "POST", "DELETE"}, Refuse(403, "AccessDenied"))

    @contextlib.contextmanager
    def _refusing(self, methods: set[str], refusal: Refuse) -> Iterator[None]:
        before = self._proxy.fault
        self._proxy.fault = lambda request: refusal if request.method in methods else before(request)
        try:
            yield
        finally:
            self._proxy.fault = before


class S3Contract(ObjectStoreContract):
    many: ClassVar = 1100
    refresh_after_s: ClassVar = 6.0
    """The times of objects are those of the server: to be old they have to get old."""

    @pytest.fixture
    def faults(self, proxy: S3Proxy) -> Iterator[S3Faults]:
        yield S3Faults(proxy)
        proxy.fault = lambda request: None

    @pytest.fixture
    def aged(self) -> Callable[[str, float], None]:
        def wait(path: str, by_s: float) -> None:
            if by_s > REFRESH_AFTER_S:
                time.sleep(self.refresh_after_s + 2)
            elif by_s < 5:
                time.sleep(by_s)

        return wait


@contextlib.contextmanager
def opened(server: S3Server, proxy: S3Proxy, *, has_conditions: bool, refresh_after_s: float) -> Iterator[S3Store]:
    client = S3Client(parse_place(server.new_storage()), server.options(endpoint=proxy.endpoint), limits=QUICK)
    with S3Store(client, has_conditions=has_conditions, refresh_after_s=refresh_after_s) as store:
        yield store


class TestConditions(S3Contract):
    @pytest.fixture
    def store(self, s3_server: S3Server, proxy: S3Proxy) -> Iterator[S3Store]:
        with opened(s3_server, proxy, has_conditions=True, refresh_after_s=self.refresh_after_s) as store:
            yield store


def ignoring(names: tuple[str, ...], request: S3Request) -> Ignore | None:
    has_some = any(name.lower() in request.headers for name in names)
    return Ignore(names, WRITER) if has_some else None


class TestLeases(S3Contract):
    """The same on a server that accepts conditions and ignores them."""

    @pytest.fixture
    def store(self, s3_server: S3Server, proxy: S3Proxy) -> Iterator[S3Store]:
        proxy.fault = partial(ignoring, CONDITIONS)
        with opened(s3_server, proxy, has_conditions=False, refresh_after_s=self.refresh_after_s) as store:
            yield store
        proxy.fault = lambda request: None


@pytest.mark.parametrize("ignored", [(), CONDITIONS, ("If-Match",), ("If-None-Match",)])
def test_a_race_tells_whether_conditions_are_honoured(
    s3_server: S3Server, proxy: S3Proxy, ignored: tuple[str, ...]
) -> None:
    proxy.fault = partial(ignoring, ignored)
    try:
        found = probe_storage(s3_server.new_storage(), s3_server.options(endpoint=proxy.endpoint))
    finally:
        proxy.fault = lambda request: None
    assert found.has_conditions == (not ignored)
