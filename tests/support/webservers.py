"""The real nginx and the real Apache on loopback, with a site of ours and as little besides as they start with."""

import contextlib
import http.client
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.tools import missing, need
from tests.support.waiting import eventually

_MODULES = Path("/usr/lib/apache2/modules")
_APACHE_MODULES = ("mpm_event", "authz_core", "alias", "headers", "proxy", "proxy_http", "mime", "deflate", "filter")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def nginx(work: Path, site: Path, port: int) -> Iterator[None]:
    """`work` gets its files; `site` is what an operator would put into conf.d."""
    program = need("nginx", "nginx")
    work.mkdir()
    temporary = "".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (work / "nginx.conf").write_text(
        f"daemon off; pid nginx.pid; error_log error.log; user root; worker_processes 1;"
        f"events {{ worker_connections 64; }} http {{ access_log off; gzip on; {temporary} include {site}; }}\n"
    )
    with _running([program, "-p", str(work), "-e", "error.log", "-c", "nginx.conf"], work / "error.log", port):
        yield


@contextlib.contextmanager
def apache(work: Path, site: Path, port: int) -> Iterator[None]:
    program = need("apache2", "apache2-bin")
    if not _MODULES.is_dir():
        missing(f"{_MODULES} is missing: apt-get install apache2-bin")
    work.mkdir()
    modules = [f"LoadModule {name}_module {_MODULES}/mod_{name}.so" for name in _APACHE_MODULES]
    lines = [
        f"ServerRoot {work}", "PidFile apache.pid", "ErrorLog error.log", "DefaultRuntimeDir .", *modules,
        "ServerName localhost", "User daemon", "Group daemon", "TypesConfig /dev/null", "StartServers 1",
        # As Debian's own files have it.
        "<Directory />", "Require all denied", "</Directory>", "AddOutputFilterByType DEFLATE application/octet-stream",
        f"Include {site}",
    ]  # fmt: skip
    (work / "apache.conf").write_text("\n".join(lines) + "\n")
    with _running([program, "-d", str(work), "-f", "apache.conf", "-D", "FOREGROUND"], work / "error.log", port):
        yield


WEB_SERVERS = {"nginx": nginx, "apache": apache}


@contextlib.contextmanager
def _running(command: list[str], log: Path, port: int) -> Iterator[None]:
    with (
        log.with_name("stderr").open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process,
    ):
        try:
            came = eventually(lambda: process.poll() is not None or _answers(port))
            said = [path.read_text() for path in (log, log.with_name("stderr")) if path.exists()]
            assert came, said
            assert process.poll() is None, said
            yield
        finally:
            process.terminate()
            process.wait(30)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True
