"""The client bundle: the same input gives the same bytes, and each client understands its file."""

import io
import subprocess
import tarfile
import tomllib
from pathlib import Path

from mica.config import load_config
from mica.server.bundle import make_bundle

FQRN = "images.example.org"
URLS = ("http://one.example.org/cvmfs/images.example.org", "http://two.example.org/cvmfs/images.example.org")
KEYS = {f"{FQRN}.pub": b"present", f"{FQRN}.next.pub": b"next"}


def test_the_tar_has_the_files_in_one_directory() -> None:
    bundle = make_bundle(FQRN, URLS, KEYS)
    assert bundle.tar == make_bundle(FQRN, URLS, KEYS).tar
    with tarfile.open(fileobj=io.BytesIO(bundle.tar)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert found == {f"{FQRN}/{name}": content for name, content in bundle.files.items()}
    assert set(found) >= {f"{FQRN}/{name}" for name in (*KEYS, f"{FQRN}.toml", f"{FQRN}.conf", "README")}


def test_mica_reads_its_section(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(make_bundle(FQRN, URLS, KEYS).files[f"{FQRN}.toml"])
    location = load_config(path).repositories[FQRN]
    assert (location.urls, location.keys) == (URLS, (Path(f"/etc/mica/keys/{FQRN}"),))
    assert tomllib.loads(path.read_text())


def test_a_shell_reads_the_stock_configuration(tmp_path: Path) -> None:
    """The stock client has its files read by a shell."""
    path = tmp_path / "stock.conf"
    path.write_bytes(make_bundle(FQRN, URLS, KEYS).files[f"{FQRN}.conf"])
    script = f'. {path}; echo "$CVMFS_SERVER_URL"; echo "$CVMFS_KEYS_DIR"'
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [";".join(URLS), f"/etc/cvmfs/keys/{FQRN}"]


def test_the_lines_name_every_server_and_every_key() -> None:
    lines = make_bundle(FQRN, URLS, KEYS).lines
    assert lines.at_once[-1] == (
        f"mica mount {FQRN} /mnt --url {URLS[0]} --url {URLS[1]} --key {FQRN}/{FQRN}.pub --key {FQRN}/{FQRN}.next.pub"
    )
    readme = make_bundle(FQRN, URLS, KEYS).files["README"].decode()
    for block in lines:
        for line in block:
            assert f"    {line}\n" in readme
