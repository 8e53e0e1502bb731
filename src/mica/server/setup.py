"""All files that make a repository's storage a server, below one directory (docs/server.md).

    <directory>/nginx/<site>.conf, <site>/<fqrn>.conf       for nginx: a site, and the repositories in it
    <directory>/apache/<site>.conf, <site>/<fqrn>.conf      the same for Apache
    <directory>/systemd/mica-*                              timers
    <directory>/clients/<fqrn>/…, <fqrn>.tar                the client bundle

Nothing outside of the directory is touched unless `installed` names it. One thread.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from mica.errors import UserError
from mica.files import mapped_os_errors
from mica.publish.keyfiles import KeyFiles
from mica.publish.settings import RepositorySettings
from mica.server.bundle import Bundle, make_bundle
from mica.server.units import enabling, units
from mica.server.webfiles import (
    Address,
    Source,
    Upstream,
    apache_repository,
    apache_site,
    nginx_repository,
    nginx_site,
    nginx_upstream,
)
from mica.store.opening import local_directory, public_url

SYSTEM = Path("/etc")


class WebServer(StrEnum):
    NGINX = "nginx"
    APACHE = "apache"


_SITES = {WebServer.NGINX: "nginx/conf.d", WebServer.APACHE: "apache2/sites-enabled"}
"""Where Debian's packages look for sites, below /etc."""


def source_of(settings: RepositorySettings) -> Source:
    """Where a web server has the files from."""
    url = public_url(settings.storage, settings.s3)
    if url is not None:
        return Upstream(url)
    directory = local_directory(settings.storage)
    assert directory is not None, "a storage is a directory or has a URL"
    return directory


def web_files(directory: Path, fqrn: str, address: Address, source: Source) -> dict[Path, bytes]:
    """Raises UserError for a path that cannot stand in a configuration."""
    texts: dict[Path, str] = {}
    for server, site, repository in (
        (WebServer.NGINX, nginx_site, nginx_repository),
        (WebServer.APACHE, apache_site, apache_repository),
    ):
        repositories = directory / server / address.site
        texts[site_file(directory, server, address)] = site(address, repositories)
        texts[repositories / f"{fqrn}.conf"] = repository(fqrn, address, source)
    upstream = nginx_upstream(fqrn, source)
    if upstream:
        texts[directory / WebServer.NGINX / address.site / f"{fqrn}.upstream"] = upstream
    return {path: text.encode("ascii") for path, text in texts.items()}


def site_file(directory: Path, server: WebServer, address: Address) -> Path:
    return directory / server / f"{address.site}.conf"


def unit_files(
    directory: Path, command: Sequence[str], environment: Mapping[str, str], user: str | None
) -> dict[Path, bytes]:
    texts = units(command, environment, user)
    return {directory / "systemd" / name: text.encode("utf-8") for name, text in texts.items()}


def client_bundle(settings: RepositorySettings) -> Bundle:
    """With the master keys that clients are to accept now. Raises UserError if no URL is known."""
    if not settings.urls:
        raise UserError(
            f"It is not known where clients find {settings.fqrn}.",
            hint="Give it with --url http://HOST/cvmfs/… once; it is kept.",
        )
    keys = KeyFiles(settings)
    keys.public_keys()  # what is no key must not be handed out
    kinds = [kind for kind in ("pub", "next.pub") if kind == "pub" or keys.path(kind).exists()]
    contents = {}
    for kind in kinds:
        with mapped_os_errors(f"read {keys.path(kind)}"):
            contents[keys.path(kind).name] = keys.path(kind).read_bytes()
    return make_bundle(settings.fqrn, settings.urls, contents)


def bundle_files(directory: Path, bundle: Bundle) -> dict[Path, bytes]:
    place = directory / "clients"
    return {
        **{place / bundle.fqrn / name: content for name, content in bundle.files.items()},
        place / f"{bundle.fqrn}.tar": bundle.tar,
    }


def remove_former_keys(directory: Path, bundle: Bundle) -> None:
    """Public keys that are no longer in the bundle."""
    with mapped_os_errors("clean up the client bundle"):
        for path in (directory / "clients" / bundle.fqrn).glob("*.pub"):
            if path.name not in bundle.files:
                path.unlink()


def installed(
    system: Path, directory: Path, server: WebServer, address: Address, files: Mapping[Path, bytes]
) -> dict[Path, bytes]:
    """The site and the units once more, where the web server and systemd look for them."""
    site = site_file(directory, server, address)
    found = {system / _SITES[server] / site.name: files[site]}
    found.update(
        (system / "systemd/system" / path.name, content)
        for path, content in files.items()
        if path.parent == directory / "systemd"
    )
    return found


def lines_after_install(fqrn: str, server: WebServer) -> list[str]:
    reload = {
        WebServer.NGINX: ["nginx -t && systemctl reload nginx"],
        WebServer.APACHE: ["a2enmod headers", "apachectl configtest && systemctl restart apache2"],
    }
    return [*reload[server], "systemctl daemon-reload", enabling(fqrn)]
