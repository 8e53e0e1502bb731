"""What stands in the configuration of web servers, and what cannot."""

from pathlib import Path

import pytest

from mica.errors import UserError
from mica.server.webfiles import (
    Address,
    Upstream,
    apache_repository,
    apache_site,
    nginx_repository,
    nginx_site,
    nginx_upstream,
    parse_address,
)

FQRN = "images.example.org"
ADDRESS = Address("server.example.org", 80, f"/cvmfs/{FQRN}")


@pytest.mark.parametrize(
    ("url", "address", "listen", "site"),
    [
        (f"http://server.example.org/cvmfs/{FQRN}/", ADDRESS, "80", "mica-server.example.org"),
        (f"https://server.example.org/cvmfs/{FQRN}", ADDRESS, "80", "mica-server.example.org"),
        ("http://h:8000/r", Address("h", 8000, "/r"), "8000", "mica-h-8000"),
        ("http://192.0.2.1/a/b", Address("192.0.2.1", 80, "/a/b"), "192.0.2.1:80", "mica-192.0.2.1"),
        ("http://[2001:db8::1]:81/r", Address("2001:db8::1", 81, "/r"), "[2001:db8::1]:81", "mica-2001_db8__1-81"),
    ],
)
def test_an_address_is_that_of_the_url(url: str, address: Address, listen: str, site: str) -> None:
    found = parse_address(url)
    assert (found, found.listen, found.site) == (address, listen, site)


@pytest.mark.parametrize(
    "url",
    [
        "", "server/cvmfs/x", "ftp://h/x", "http:///x", "http://h", "http://h/", "http://h:0/x", "http://h:99999/x",
        "http://h/x?y", "http://h/x#y", "http://h/a b", 'http://h/a"b', "http://h/a;b", "http://h/{x}", "http://h/$x",
        "http://h/a\nb", "http://u:p@h/x", "http://h/x\n", "http://h{/x", "http://h/%20",
    ],
)  # fmt: skip
def test_a_url_that_no_server_can_be_set_up_for_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"is not the URL of a repository|cannot be written into the configuration"):
        parse_address(url)


@pytest.mark.parametrize("path", ["/srv/$host", '/srv/a"b', "/srv/a;b", "/srv/{a}", "/srv/a\\b", "/srv/ä", "/srv/a\nb"])
def test_a_directory_that_would_mean_something_else_is_refused(path: str) -> None:
    for make in (
        lambda: nginx_repository(FQRN, ADDRESS, Path(path)),
        lambda: apache_repository(FQRN, ADDRESS, Path(path)),
        lambda: nginx_site(ADDRESS, Path(path)),
        lambda: apache_site(ADDRESS, Path(path)),
    ):
        with pytest.raises(UserError, match="cannot be written into the configuration of a web server"):
            make()


def test_a_bucket_has_connections_of_its_own() -> None:
    bucket = Upstream("https://s3.example.org:9000/bucket/images.example.org")
    assert "upstream mica_images_example_org { server s3.example.org:9000; keepalive 32; }" in nginx_upstream(
        FQRN, bucket
    )
    assert nginx_upstream(FQRN, Path("/srv")) == ""
    text = nginx_repository(FQRN, ADDRESS, bucket)
    assert "proxy_pass https://mica_images_example_org/bucket/images.example.org/$1;" in text
    assert "proxy_ssl_name s3.example.org;" in text
    assert "proxy_set_header Host s3.example.org:9000;" in text


@pytest.mark.parametrize("url", ["http://h;x/b", "http://h/a b", "http://u:p@h/b", 'http://h/"'])
def test_a_bucket_that_would_mean_something_else_is_refused(url: str) -> None:
    for make in (nginx_repository, apache_repository):
        with pytest.raises(UserError, match="cannot be written into the configuration of a web server"):
            make(FQRN, ADDRESS, Upstream(url))
