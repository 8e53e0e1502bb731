"""Lists in pages: links are followed as they are, on the server that was asked, and come to an end."""

import pytest
from tests.support.registry import Reply, ScriptedRegistry, scripted_registry

from mica.errors import NotFoundError, TemporaryError, UserError
from mica.oci.endpoints import Endpoint, HostConfig
from mica.oci.nextpage import next_page
from mica.oci.reference import Reference
from mica.oci.registry import open_registry
from mica.oci.session import RegistryOptions
from mica.oci.transport import TransportOptions

HERE = "https://reg.example:5000/v2/a/b/tags/list?n=1000"
FAST = TransportOptions(attempts=2, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ""),
        ('</v2/a/b/tags/list?n=3&last=x>; rel="next"', "/v2/a/b/tags/list?n=3&last=x"),
        ("</v2/a/b/tags/list?next_page=gAAAB%3D%3D&n=3>; rel=next", "/v2/a/b/tags/list?next_page=gAAAB%3D%3D&n=3"),
        ('<?last=a%2Bb>; title="x; rel=prev"; REL="last Next"', "/v2/a/b/tags/list?last=a%2Bb"),
        ('<list?last=1>;rel="next"', "/v2/a/b/tags/list?last=1"),
        ('</first>; rel="first", </a,b;c?x>; rel="next", </last>; rel="last"', "/a,b;c?x"),
        ('</v2/>; rel="prev"', ""),
        ('</v2/>; rel="nextish"', ""),
        ("</v2/>", ""),
        ('<http://internal:80/v2/a/b/tags/list?last=x>; rel="next"', "/v2/a/b/tags/list?last=x"),
        ('<//evil.example/v2/x>; rel="next"', "/v2/x"),
        ('<file:///etc/passwd>; rel="next"', "/etc/passwd"),
    ],
)
def test_next_page(header: str, expected: str) -> None:
    """Never on another server, whatever the link says of itself."""
    assert next_page(header, HERE) == (f"https://reg.example:5000{expected}" if expected else "")


@pytest.mark.parametrize("header", ["next", "</v2/", '</v2/>; rel="next', "</v2/> x", '<http://[/>; rel="next"'])
def test_links_that_tell_nothing_are_refused(header: str) -> None:
    with pytest.raises(UserError, match=r"(with|of) a list.s next page"):
        next_page(header, HERE)


def tags(registry: ScriptedRegistry, mirror: ScriptedRegistry | None = None) -> list[str]:
    mirrors = () if mirror is None else (Endpoint(f"http://{mirror.host}/v2", mirror.host),)
    options = RegistryOptions(find_hosts=lambda _: HostConfig(mirrors), transport=FAST)
    with open_registry(options) as client:
        return client.tags(Reference.parse(f"{registry.host}/team/image:any"))


def test_all_pages_are_read_by_their_cursors() -> None:
    with scripted_registry() as registry:
        registry.tags = [f"v{number}" for number in range(9)]
        registry.needs_token = True
        assert tags(registry) == registry.tags
        assert len(registry.paths("/tags/list")) == 6, "five pages, and the first a second time after the login"


def test_pages_stay_with_the_server_that_began_the_list() -> None:
    with scripted_registry() as registry, scripted_registry() as other:
        link = f'<http://{other.host}/v2/team/image/tags/list?cursor=Mg%3D%3D>; rel="next"'
        registry.tags = ["a", "b", "c"]
        registry.script["tags/list"] = [Reply(headers={"Link": link}, body=b'{"tags": ["a", "b"]}')]
        assert tags(registry) == ["a", "b", "c"]
        assert not other.requests


def test_empty_page_is_not_the_end() -> None:
    with scripted_registry() as registry:
        registry.tags = ["a", "b", "c"]
        link = '</v2/team/image/tags/list?cursor=MA%3D%3D>; rel="next"'
        registry.script["tags/list"] = [Reply(headers={"Link": link}, body=b'{"tags": null}')]
        assert tags(registry) == ["a", "b", "c"]


@pytest.mark.parametrize("target", ["/v2/team/image/tags/list?n=1000", "/v2/team/image/tags/list?x=1"])
def test_list_that_comes_back_to_where_it_was_is_refused(target: str) -> None:
    """Half a list is worse than none: what is not in it counts as gone."""
    with scripted_registry() as registry:
        page = Reply(headers={"Link": f'<{target}>; rel="next"'}, body=b'{"tags": ["a"]}')
        registry.script["tags/list"] = [page] * 9
        with pytest.raises(UserError, match=f"{registry.host} sends the tags of .*team/image without end"):
            tags(registry)
        assert len(registry.requests) <= 4


def test_list_of_pages_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mica.oci.registry._TAG_PAGE_LIMIT", 20)
    with scripted_registry() as registry:
        pages = [Reply(headers={"Link": f'<?at={number}>; rel="next"'}, body=b'{"tags": []}') for number in range(99)]
        registry.script["tags/list"] = list(pages)
        with pytest.raises(UserError, match="without end"):
            tags(registry)
        assert len(registry.paths("tags")) == 20


def test_what_is_no_tag_is_left_out() -> None:
    with scripted_registry() as registry:
        registry.script["tags/list"] = [Reply(body=b'{"tags": ["a", "../b", "", "c d", "%s"]}' % (b"x" * 200))]
        assert tags(registry) == ["a"]


def test_page_that_fails_fails_the_list() -> None:
    with scripted_registry() as registry:
        registry.tags = ["a", "b", "c"]
        registry.script["tags/list"] = [None, Reply(405, body=b'{"errors": [{"code": "UNSUPPORTED"}]}')]
        with pytest.raises(UserError, match=r"answers HTTP 405 for the tags of .*, saying: UNSUPPORTED"):
            tags(registry)


def test_mirrors_are_asked_for_tags_only_while_the_registry_cannot_be() -> None:
    """A mirror has what was asked of it, which is not all there is."""
    with scripted_registry() as registry, scripted_registry() as mirror:
        registry.tags, mirror.tags = ["a", "b", "c"], ["a"]
        assert tags(registry, mirror) == ["a", "b", "c"]
        assert not mirror.requests
        registry.script["tags/list"] = [Reply(404)]
        with pytest.raises(NotFoundError):
            tags(registry, mirror)
        registry.script["tags/list"] = [Reply(503)] * 4
        assert tags(registry, mirror) == ["a"]
        mirror.script["tags/list"] = [Reply(404)]
        with pytest.raises(TemporaryError, match=registry.host):
            tags(registry, mirror)
