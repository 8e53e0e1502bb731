"""Configuration of nginx and Apache for one repository: its published files under one URL, and nothing else.

Each web server has a site for every host and port, which includes the files of the repositories there. Both answer what
the format asks for (docs/format/objects.md): pointers for 61 seconds, objects unchanged for three days, no
entity tags, no content encoding, one `Content-Type` each, ranges, no listing. Pure; any thread.
"""

import ipaddress
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from mica.errors import UserError
from mica.fetch.routes import is_http_url
from mica.store.httpserver import OBJECT_SECONDS, POINTER_SECONDS

_HTTP_PORT = 80
_TLS_PORT = 443
_POINTER = r"\.cvmfs[A-Za-z0-9._-]+"
_OBJECT = "data/[0-9a-f][0-9a-f]/[0-9a-f]{38}[A-Za-z0-9-]*"
_SAFE_PATH = re.compile(r"/[A-Za-z0-9._/+:@ -]*")
_SAFE_URL_PATH = re.compile(r"(?:/[A-Za-z0-9._~@+:-]+)+")
_SAFE_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]+")
_HEADERS_OF_S3 = ("ETag", "Last-Modified", "Content-Disposition", "x-amz-request-id", "x-amz-id-2")


class Address(NamedTuple):
    """Where a web server shows a repository: the host and port of its URL, and the path without a slash at its end."""

    host: str
    port: int
    path: str

    @property
    def site(self) -> str:
        """The name of the site's files."""
        host = self.host.replace(":", "_")
        return f"mica-{host}" if self.port == _HTTP_PORT else f"mica-{host}-{self.port}"

    @property
    def listen(self) -> str:
        """Address and port to listen on: all addresses for a name, only this one for a literal address."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return str(self.port)
        return f"[{address}]:{self.port}" if address.version == 6 else f"{address}:{self.port}"


class Upstream(NamedTuple):
    """A bucket that anybody may read, as base URL of the repository's files: the web server fetches from it."""

    url: str


Source = Path | Upstream


def parse_address(url: str) -> Address:
    """For https it is port 80 of the server behind the one that does TLS. Raises UserError for a URL that a web server
    cannot be set up for."""
    parts = urlsplit(url) if is_http_url(url) else urlsplit("")
    if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"{url!r} is not the URL of a repository.", hint="Such as http://HOST/cvmfs/images.example.org."
        )
    path = parts.path.rstrip("/")
    if not _SAFE_URL_PATH.fullmatch(path) or not re.fullmatch(r"[A-Za-z0-9.:-]+", parts.hostname):
        raise UserError(
            f"{url!r} cannot be written into the configuration of a web server.",
            hint="Its path has letters, digits and '._~@+:-' only, as /cvmfs/images.example.org.",
        )
    return Address(parts.hostname, _HTTP_PORT if parts.scheme == "https" else parts.port or _HTTP_PORT, path)


def nginx_site(address: Address, repositories: Path) -> str:
    """The server block; `repositories` is the directory of the files that it includes."""
    lines = [
        "# Written by `mica server init`: the site of all repositories on this host and port.",
        f'include "{_safe(repositories)}/*.upstream";',
        "server {",
        f"    listen {address.listen};",
        f"    server_name {address.host};",
        "    server_tokens off;",
        "    keepalive_timeout 60s;",
        "    keepalive_requests 100000;",
        "    client_max_body_size 1k;",
        f'    include "{_safe(repositories)}/*.conf";',
        "    location / { return 404; }",
        "}",
    ]
    return _text(lines)


def nginx_repository(fqrn: str, address: Address, source: Source) -> str:
    name = re.sub(r"[^A-Za-z0-9]", "_", fqrn)
    lines = [f"# Written by `mica server init` for {fqrn}.", f"location {address.path}/ {{", "    return 404;"]
    for pattern, kind, seconds in _kinds():
        lines += [
            f'    location ~ "^{re.escape(address.path)}/({pattern})$" {{',
            "        limit_except GET { deny all; }",
            *(f"        {line}" for line in _nginx_source(source, name)),
            *(f"        {line}" for line in _nginx_type(source, kind)),
            "        gzip off;",
            f'        add_header Cache-Control "{seconds}";',
            "    }",
        ]
    return _text([*lines, "}"])


def nginx_upstream(fqrn: str, source: Source) -> str:
    """The file beside it for what stands outside of the server block; empty for a directory."""
    if not isinstance(source, Upstream):
        return ""
    parts = _split(source)
    name = re.sub(r"[^A-Za-z0-9]", "_", fqrn)
    port = parts.port or (_TLS_PORT if parts.scheme == "https" else _HTTP_PORT)
    return _text(
        [
            f"# Written by `mica server init` for {fqrn}: connections to its bucket are kept.",
            f"upstream mica_{name} {{ server {parts.hostname}:{port}; keepalive 32; }}",
        ]
    )


def _nginx_source(source: Source, name: str) -> list[str]:
    if not isinstance(source, Upstream):
        return [f'alias "{_safe(source)}/$1";', "etag off;", "if_modified_since off;", 'add_header Last-Modified "";']
    parts = _split(source)
    tls = ["proxy_ssl_server_name on;", f"proxy_ssl_name {parts.hostname};"] if parts.scheme == "https" else []
    return [
        f"proxy_pass {parts.scheme}://mica_{name}{parts.path.rstrip('/')}/$1;",
        "proxy_http_version 1.1;",
        f"proxy_set_header Host {parts.netloc};",
        'proxy_set_header Connection "";',
        'proxy_set_header Authorization "";',
        "proxy_buffering on;",
        "proxy_max_temp_file_size 0;",
        *tls,
        "proxy_hide_header Cache-Control;",
        *(f"proxy_hide_header {header};" for header in _HEADERS_OF_S3),
        "# A bucket that nobody may list answers 403 for what is not there.",
        "proxy_intercept_errors on;",
        "error_page 403 404 =404 /mica-not-here;",
    ]


def _nginx_type(source: Source, kind: str) -> list[str]:
    if isinstance(source, Upstream):  # nginx gives its own type only to files
        return ["proxy_hide_header Content-Type;", f"add_header Content-Type {kind};"]
    return ["types { }", f"default_type {kind};"]


def apache_site(address: Address, repositories: Path) -> str:
    """The virtual host; `repositories` is the directory of the files that it includes."""
    where = address.listen if ":" in address.listen else f"*:{address.port}"
    listen = [] if address.port in {_HTTP_PORT, _TLS_PORT} else [f"Listen {address.listen}"]
    lines = [
        "# Written by `mica server init`: the site of all repositories on this host and port.",
        "# It needs the modules headers, alias and authz_core; for a bucket also proxy and proxy_http.",
        *listen,
        f"<VirtualHost {where}>",
        f"    ServerName {address.host}",
        "    KeepAlive On",
        "    KeepAliveTimeout 60",
        "    MaxKeepAliveRequests 0",
        f'    IncludeOptional "{_safe(repositories)}/*.conf"',
        "</VirtualHost>",
    ]
    return _text(lines)


def apache_repository(fqrn: str, address: Address, source: Source) -> str:
    base = re.escape(address.path)
    lines = [
        f"# Written by `mica server init` for {fqrn}.",
        f'RedirectMatch 404 "^{base}/(?!(?:{_POINTER}|{_OBJECT})$)"',
        *(["SSLProxyEngine on"] if isinstance(source, Upstream) and source.url.startswith("https:") else []),
    ]
    for pattern, kind, seconds in _kinds():
        if isinstance(source, Upstream):
            lines.append(f'ProxyPassMatch "^{base}/({pattern})$" "{_split(source).geturl().rstrip("/")}/$1"')
        else:
            lines.append(f'AliasMatch "^{base}/({pattern})$" "{_safe(source)}/$1"')
        lines += [
            f'<LocationMatch "^{base}/{pattern}$">',
            *(["    Require method GET HEAD"] if isinstance(source, Upstream) else []),
            f'    Header set Content-Type "{kind}"',
            f'    Header set Cache-Control "{seconds}"',
            *(f"    Header unset {header}" for header in _HEADERS_OF_S3),
            "    RequestHeader unset If-Modified-Since",
            "    RequestHeader unset Accept-Encoding",
            "</LocationMatch>",
        ]
    if not isinstance(source, Upstream):
        lines += [
            f'<Directory "{_safe(source)}">',
            "    Require method GET HEAD",
            "    AllowOverride None",
            "    Options FollowSymLinks",
            "    FileETag None",
            "</Directory>",
        ]
    return _text(lines)


def _kinds() -> tuple[tuple[str, str, str], ...]:
    """Pattern of the path, content type, and how long caches may keep it."""
    return (
        (_POINTER, "application/x-cvmfs", f"max-age={POINTER_SECONDS}"),
        (_OBJECT, "application/octet-stream", f"max-age={OBJECT_SECONDS}, immutable"),
    )


def _split(source: Upstream) -> SplitResult:
    parts = urlsplit(source.url)
    if not _SAFE_HOST.fullmatch(parts.netloc) or not _SAFE_URL_PATH.fullmatch(parts.path.rstrip("/") or "/."):
        raise UserError(f"{source.url} cannot be written into the configuration of a web server.")
    return parts


def _safe(path: Path) -> str:
    text = str(path)
    if not _SAFE_PATH.fullmatch(text):
        raise UserError(
            f"{text} cannot be written into the configuration of a web server.",
            hint="Choose a directory with letters, digits, blanks and '._/+:@-' in its path.",
        )
    return text


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
