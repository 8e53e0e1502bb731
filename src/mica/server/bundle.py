"""The client bundle: all that a node needs of a repository, as files and as one tar, with the lines to run there.

    <fqrn>/<fqrn>.pub       public master key; while it changes also <fqrn>.next.pub
    <fqrn>/<fqrn>.toml      section for mica's configuration
    <fqrn>/<fqrn>.conf      configuration of a stock CernVM-FS client
    <fqrn>/README           the lines to run

Pure; any thread. The same input gives the same bytes.
"""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_SAY_NO_PROXY = (
    "grep -qs ^CVMFS_HTTP_PROXY= /etc/cvmfs/default.local || echo CVMFS_HTTP_PROXY=DIRECT >>/etc/cvmfs/default.local"
)
"""A stock client mounts nothing until it is told its proxies, or that there are none."""


class Bundle(NamedTuple):
    """`files` by name, without a directory."""

    fqrn: str
    files: Mapping[str, bytes]
    lines: "ClientLines"

    @property
    def tar(self) -> bytes:
        output = io.BytesIO()
        with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in self.files.items():
                member = tarfile.TarInfo(f"{self.fqrn}/{name}")
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))
        return output.getvalue()


class ClientLines(NamedTuple):
    """Commands of a shell, to be run as root where the tar of the bundle lies."""

    at_once: Sequence[str]
    configured: Sequence[str]
    stock: Sequence[str]


def make_bundle(fqrn: str, urls: Sequence[str], public_keys: Mapping[str, bytes]) -> Bundle:
    """`public_keys`: the files with public master keys, by name; the present one first."""
    lines = _lines(fqrn, urls, list(public_keys))
    files = {
        **public_keys,
        f"{fqrn}.toml": _mica_configuration(fqrn, urls).encode("ascii"),
        f"{fqrn}.conf": _stock_configuration(fqrn, urls).encode("ascii"),
        "README": _readme(fqrn, lines).encode("ascii"),
    }
    return Bundle(fqrn, files, lines)


def _lines(fqrn: str, urls: Sequence[str], keys: Sequence[str]) -> ClientLines:
    unpack = f"tar -xf {fqrn}.tar"
    options = [f"--url {url}" for url in urls] + [f"--key {fqrn}/{key}" for key in keys]
    return ClientLines(
        at_once=[unpack, f"mica mount {fqrn} /mnt {' '.join(options)}"],
        configured=[
            unpack,
            f"install -D -m 644 -t /etc/mica/keys/{fqrn} {fqrn}/*.pub",
            f"cat {fqrn}/{fqrn}.toml >>/etc/mica/config.toml",
            f"mica mount {fqrn} /mnt",
        ],
        stock=[
            unpack,
            f"install -D -m 644 -t /etc/cvmfs/keys/{fqrn} {fqrn}/*.pub",
            f"install -D -m 644 -t /etc/cvmfs/config.d {fqrn}/{fqrn}.conf",
            _SAY_NO_PROXY,
            f"mount -t cvmfs {fqrn} /mnt",
        ],
    )


def _mica_configuration(fqrn: str, urls: Sequence[str]) -> str:
    return (
        f'[repositories."{fqrn}"]\n'
        f"urls = {json.dumps(list(urls))}\n"
        f'keys = ["/etc/mica/keys/{fqrn}"]  # every *.pub in it counts\n'
    )


def _stock_configuration(fqrn: str, urls: Sequence[str]) -> str:
    return f'CVMFS_SERVER_URL="{";".join(urls)}"\nCVMFS_KEYS_DIR="/etc/cvmfs/keys/{fqrn}"\n'


def _readme(fqrn: str, lines: ClientLines) -> str:
    parts = (
        (f"Mount {fqrn} with mica, at once:", lines.at_once),
        ("The same, by its configuration:", lines.configured),
        ("With a stock CernVM-FS client. CVMFS_HTTP_PROXY may name the proxies of your site instead:", lines.stock),
    )
    return "\n".join(f"{title}\n\n{''.join(f'    {line}' + chr(10) for line in block)}" for title, block in parts)
