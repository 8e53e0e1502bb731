"""Bad input at the level of the command: one sentence, the right exit code, the repository as it was, nothing left."""

import bz2
import contextlib
import gzip
import json
import lzma
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from tests.support.cli import mica
from tests.support.noise import noise
from tests.support.registry import Reply, hanging_up_server, scripted_registry
from tests.support.repositories import FQRN, Repository, ingest, make_repository
from tests.support.tars import END, header, member, pax
from tests.support.tools import need_root
from tests.support.webserver import serving
from tests.unit.oci.samples import Sample, compressed, digest_of, make_sample, make_tar, write_layout

from mica import linux

pytestmark = pytest.mark.system


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = make_repository(tmp_path)
    ingest(made, member(b"kept", b"as it was") + END, b"/data")
    return made


@contextlib.contextmanager
def unchanged(repository: Repository) -> Iterator[None]:
    """The published revision stays, the checker agrees, and no temporary file is left."""
    before = (repository.storage / ".cvmfspublished").read_bytes()
    yield
    assert (repository.storage / ".cvmfspublished").read_bytes() == before
    checked = mica(repository.state, "repo", "check", FQRN)
    assert checked.code == 0, checked.stdout
    places = {*repository.storage.rglob("*"), *repository.state.rglob("*")}
    places.discard(repository.storage / "data/txn/pointers.lock")
    left = [path for path in places if path.is_file() and (path.suffix == ".tmp" or {"txn", "work"} & set(path.parts))]
    assert not left


def long_name(length: int) -> bytes:
    return pax([(b"path", b"n" * length)]) + member(b"short", b"x")


ARCHIVES = {
    "truncated in a header": (member(b"a", b"x" * 600) + header(b"b")[:200], "truncated"),
    "truncated in data": (member(b"a", b"x" * 5000)[:2000], "truncated"),
    "without its end": (member(b"a", b"x"), "truncated"),
    "parent directory": (member(b"../evil", b"x") + END, "'..'"),
    "hidden parent directory": (member(b"a/b/../../../evil", b"x") + END, "'..'"),
    "written through a link": (
        member(b"a", type_flag=b"2", link=b"/etc") + member(b"a/passwd", b"x") + END,
        "a/passwd",
    ),
    "hard link to nothing": (member(b"a", type_flag=b"1", link=b"/etc/passwd") + END, "etc/passwd"),
    "name of 300 bytes": (long_name(300) + END, "255"),
    "wrong checksum": (header(b"a", checksum=b"000001\0 ") + END, "checksum"),
    "no archive": (b"this is not a tar at all" * 100, ""),
    "packed and truncated in data": (compressed(member(b"a", b"x" * 5000)[:2000], "gzip"), "truncated"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archive_is_refused(name: str, repository: Repository, tmp_path: Path) -> None:
    archive, word = ARCHIVES[name]
    (tmp_path / "bad.tar").write_bytes(archive)
    with unchanged(repository):
        outcome = mica(repository.state, "repo", "ingest", FQRN, tmp_path / "bad.tar", "/new")
    assert outcome.code == 1
    assert word in outcome.sentence


PACKED = {
    "gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress, "zstd": zstandard.compress
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKED)
def test_packed_archive_is_read_and_a_damaged_one_named(kind: str, repository: Repository, tmp_path: Path) -> None:
    data = PACKED[kind](member(b"a", b"x" * 5000) + END)
    (tmp_path / "fine.tar").write_bytes(data)
    assert mica(repository.state, "repo", "ingest", FQRN, tmp_path / "fine.tar", "/new").code == 0
    assert mica(repository.state, "repo", "cat", FQRN, "/new/a").stdout == "x" * 5000
    (tmp_path / "bad.tar").write_bytes(data[:10] + b"\xff" * 20 + data[30:])
    with unchanged(repository):
        outcome = mica(repository.state, "repo", "ingest", FQRN, tmp_path / "bad.tar", "/new")
    assert outcome.code == 3
    assert f"bad.tar is a damaged {kind} file" in outcome.sentence


def test_absolute_names_and_special_files_are_legal(repository: Repository, tmp_path: Path) -> None:
    archive = (
        member(b"/abs/file", b"x")
        + member(b"fifo", type_flag=b"6")
        + member(b"null", type_flag=b"3", major=b"0000001\0")
    )
    archive += member(b"twice", b"first") + member(b"twice", b"second") + END
    (tmp_path / "odd.tar").write_bytes(archive)
    assert mica(repository.state, "repo", "ingest", FQRN, tmp_path / "odd.tar", "/new").code == 0
    assert mica(repository.state, "repo", "cat", FQRN, "/new/abs/file").stdout == "x"
    assert mica(repository.state, "repo", "cat", FQRN, "/new/twice").stdout == "second"
    listed = json.loads(mica(repository.state, "repo", "ls", FQRN, "/new", "--json").stdout)
    assert {entry["name"]: entry["mode"][0] for entry in listed} == {"abs": "d", "fifo": "p", "null": "c", "twice": "-"}


def replaced(sample: Sample, digest: str, blob: bytes) -> Sample:
    return Sample(sample.blobs | {digest: blob}, sample.manifest, sample.config, sample.tars, sample.layers)


def damaged_layouts() -> dict[str, tuple[Sample, int, str]]:
    good = make_sample()
    layer = good.layers[1].digest
    other = compressed(make_tar({"usr/big": b"other" * 1000}), "gzip")
    manifest = good.manifest.digest
    wrong_diff = make_sample(config={"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [
        digest_of(good.tars[0]), digest_of(b"something else")]}})  # fmt: skip
    return {
        "truncated gzip": (replaced(good, layer, good.blobs[layer][:-100]), 3, layer[7:19]),
        "other content": (replaced(good, layer, other), 3, layer[7:19]),
        "other size": (replaced(good, layer, good.blobs[layer] + b"more"), 3, layer[7:19]),
        "wrong diff id": (wrong_diff, 3, wrong_diff.layers[1].digest[7:19]),
        "no layers": (make_sample([]), 1, "no layers"),
        "manifest is not JSON": (replaced(good, manifest, b"{" + b" " * (good.manifest.size - 1)), 3, "manifest"),
    }


@pytest.mark.parametrize("name", damaged_layouts())
def test_image_is_refused(name: str, repository: Repository, tmp_path: Path) -> None:
    sample, code, word = damaged_layouts()[name]
    layout = write_layout(tmp_path / "image", sample)
    with unchanged(repository):
        outcome = mica(repository.state, "convert", f"oci:{layout}", FQRN, "--tag", "a/b:1")
    assert outcome.code == code, outcome.stderr
    assert word in outcome.sentence


def test_layer_that_unpacks_to_too_much_is_refused(repository: Repository, tmp_path: Path) -> None:
    bomb = make_sample([make_tar({"zeros": bytes(1 << 20)}) * 1])
    huge = tmp_path / "huge.tar"
    with huge.open("wb") as file:
        file.write(header(b"zeros", size=b"%011o\0" % (9 << 27)))
        file.truncate((9 << 27) + 1536)
    packed = subprocess.run(["gzip", "-1", "-c", huge], capture_output=True, check=True).stdout
    tar_digest = subprocess.run(["sha256sum", huge], capture_output=True, check=True).stdout.split()[0].decode()
    huge.unlink()
    config = json.dumps(bomb.config | {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{tar_digest}"]}}).encode()
    layout = tmp_path / "image"
    from mica.oci import mediatypes
    from mica.oci.layoutwriter import LayoutWriter
    from mica.oci.models import format_manifest

    writer = LayoutWriter(layout)
    layer = writer.put_blob(packed, mediatypes.OCI_LAYER_GZIP)
    stored = writer.put_blob(config, mediatypes.OCI_CONFIG)
    writer.put_image(writer.put_blob(format_manifest(stored, (layer,)), mediatypes.OCI_MANIFEST), tag="v1")
    with unchanged(repository):
        outcome = mica(repository.state, "convert", f"oci:{layout}:v1", FQRN, "--tag", "a/b:1", "--max-layer-gib", "1")
    assert outcome.code == 1
    assert "more than" in outcome.sentence


@pytest.mark.parametrize(("status", "code"), [(401, 1), (404, 1), (429, 4), (500, 4)])
def test_registry_that_refuses(status: int, code: int, repository: Repository) -> None:
    with scripted_registry() as registry, unchanged(repository):
        answers: list[Reply | None] = [Reply(status, {"Retry-After": "0"}) for _ in range(50)]
        registry.script["/manifests/1"] = answers
        outcome = mica(repository.state, "convert", f"docker://{registry.host}/a/b:1", FQRN, "--tag", "a/b:1")
    assert outcome.code == code, outcome.stderr
    assert registry.host in outcome.sentence


def test_registry_that_hangs_up(repository: Repository) -> None:
    with hanging_up_server() as host, unchanged(repository):
        outcome = mica(repository.state, "convert", f"docker://{host}/a/b:1", FQRN, "--tag", "a/b:1")
    assert outcome.code == 4, outcome.stderr
    assert host in outcome.sentence


def test_full_disk(tmp_path: Path) -> None:
    need_root()
    storage = tmp_path / "storage"
    storage.mkdir()
    linux.mount("tmpfs", storage, "tmpfs", data="size=2m,nr_inodes=2000")
    try:
        repository = make_repository(tmp_path)
        ingest(repository, member(b"kept", b"as it was") + END, b"/data")

        (tmp_path / "big.tar").write_bytes(member(b"big", noise(4 << 20)) + END)
        before = (storage / ".cvmfspublished").read_bytes()
        outcome = mica(repository.state, "repo", "ingest", FQRN, tmp_path / "big.tar", "/new")
        assert outcome.code == 1
        assert "No space left" in outcome.sentence
        assert (storage / ".cvmfspublished").read_bytes() == before
        assert mica(repository.state, "repo", "check", FQRN).code == 0
    finally:
        linux.umount2(storage, linux.MNT_DETACH)


def test_expired_whitelist(repository: Repository, tmp_path: Path) -> None:
    import datetime

    from mica.repo.signing import parse_private_key
    from mica.repo.whitelist import Whitelist, parse_whitelist, sign_whitelist

    path = repository.storage / ".cvmfswhitelist"
    whitelist, _ = parse_whitelist(path.read_bytes(), "whitelist")
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    master = parse_private_key((repository.keys / f"{FQRN}.masterkey").read_bytes(), "key")
    path.write_bytes(sign_whitelist(Whitelist(FQRN, past, past, whitelist.fingerprints), master))
    (tmp_path / "fine.tar").write_bytes(member(b"a", b"x") + END)
    for arguments in (["repo", "ls", FQRN], ["repo", "ingest", FQRN, str(tmp_path / "fine.tar"), "/new"]):
        outcome = mica(repository.state, *arguments)
        assert outcome.code == 3, outcome.stderr
        assert "expired" in outcome.sentence
        assert "resign" in outcome.stderr
    assert mica(repository.state, "repo", "resign", FQRN).code == 0
    assert mica(repository.state, "repo", "ls", FQRN).code == 0


def test_a_replica_under_another_name_is_checked(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web/alias").symlink_to(repository.storage)
    key = repository.keys / f"{FQRN}.pub"
    with serving(tmp_path / "web") as server:
        wrong = mica(tmp_path / "state", "repo", "check", f"{server.url}/alias", "--key", key)
        assert (wrong.code, f"belongs to another repository, {FQRN}" in wrong.stdout) == (3, True)
        right = mica(tmp_path / "state", "repo", "check", f"{server.url}/alias", "--name", FQRN, "--key", key)
        assert (right.code, right.stdout) == (0, f"{FQRN}: no errors, 0 warnings\n")
    assert mica(repository.state, "repo", "check", FQRN, "--name", FQRN).code == 2


def test_wrong_places_and_names(repository: Repository, tmp_path: Path) -> None:
    no_key = tmp_path / "no.pub"
    no_key.write_text("not a key")
    url = ["--url", "http://127.0.0.1:9/cvmfs/x"]
    key = ["--key", str(repository.keys / f"{FQRN}.pub"), "--cache", str(tmp_path / "cache")]
    for code, word, arguments in (
        (4, "127.0.0.1:9", ["repo", "ls", FQRN, *url, *key]),
        (1, "not a PEM public key", ["repo", "ls", FQRN, *url, "--key", str(no_key)]),
        (1, "URL", ["repo", "ls", FQRN, "--url", "ftp://x/", *key]),
        (1, "unknown.example.org", ["repo", "ls", "unknown.example.org"]),
        (1, "cannot be the name", ["repo", "create", "bad name", "--storage", str(tmp_path / "s")]),
        (1, "exists already", ["repo", "create", FQRN, "--storage", str(tmp_path / "s")]),
        (1, "already holds", ["repo", "create", "other.example.org", "--storage", str(repository.storage)]),
        (1, "missing.tar", ["repo", "ingest", FQRN, str(tmp_path / "missing.tar"), "/x"]),
        (1, "'..'", ["repo", "ls", FQRN, "/a/../b"]),
        (1, "/nothing", ["repo", "cat", FQRN, "/nothing"]),
        (1, "not a regular file", ["repo", "cat", FQRN, "/data"]),
        (1, "no image", ["run", "no/such:image", "true"]),
        (1, "no directory", ["convert", f"oci:{tmp_path}/none", FQRN, "--tag", "a:1"]),
        (1, "where the image is", ["convert", "nonsense", FQRN]),
    ):
        with unchanged(repository):
            outcome = mica(repository.state, *arguments)
        assert outcome.code == code, (arguments, outcome.stderr)
        assert word in outcome.sentence, arguments


DESCRIPTORS = {
    "not JSON": (b"{", "not JSON"),
    "version": (b'{"version": "9", "layers": []}', "version"),
    "no layers": (b'{"version": "1.0", "layers": []}', "no layers"),
    "other scheme": (b"http://example.org/x", "URL"),
    "parent": (b"cvmfs://a.example.org/../etc", "path"),
    "many": (b"", "5000 layers"),
}


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_descriptor_is_refused(name: str, tmp_path: Path) -> None:
    data, word = DESCRIPTORS[name]
    if not data.startswith(b"{"):
        layer = {"digest": "ab" * 32, "url": data.decode() or "cvmfs://a.example.org/x"}
        data = json.dumps({"version": "1.0", "layers": [layer] * (1 if data else 5_000)}).encode()
    (tmp_path / "thin.json").write_bytes(data)
    for command in ("inspect", "run"):
        outcome = mica(tmp_path / "state", command, tmp_path / "thin.json")
        assert outcome.code == 1, outcome.stderr
        assert word in outcome.sentence


def test_second_publisher_is_told_to_wait(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "fine.tar").write_bytes(member(b"a", b"x") + END)
    with repository.manager() as manager, manager.transaction() as transaction:
        outcome = mica(repository.state, "repo", "ingest", FQRN, tmp_path / "fine.tar", "/new")
        transaction.give_up()
    assert outcome.code == 4
    assert "in use" in outcome.sentence


@pytest.mark.parametrize("command", ["ls", "check", "history", "ingest", "serve", "resign", "convert"])
def test_storage_that_is_gone_is_told_as_that(command: str, repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "fine.tar").write_bytes(member(b"a", b"x") + END)
    layout = write_layout(tmp_path / "layout", make_sample())
    repository.storage.rename(tmp_path / "away")
    words = ["convert", f"oci:{layout}", FQRN, "--tag", "a:1"] if command == "convert" else ["repo", command, FQRN]
    words += [str(tmp_path / "fine.tar"), "/new"] if command == "ingest" else []
    outcome = mica(repository.state, *words)
    assert outcome.code == 1
    assert f"The storage directory {repository.storage} " in outcome.sentence
