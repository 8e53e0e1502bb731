"""Wrong bytes are never served: every object, pointer and key of a small repository, changed one at a time."""

from pathlib import Path

import pytest
from tests.support.repositories import Repository, ingest, make_repository, read_back
from tests.support.tars import END, member
from tests.support.webserver import serving

from mica.errors import IntegrityError

pytestmark = pytest.mark.system
CONTENT = {
    "empty": b"",
    "small": b"small\n",
    "chunked": bytes(range(256)) * 400,
    "sub/.cvmfscatalog": b"",
    "sub/file": b"in a nested catalog",
}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = make_repository(tmp_path)
    members = (member(name.encode(), data) for name, data in CONTENT.items())
    ingest(made, b"".join(members) + END, b"/data")
    return made


def published_files(repository: Repository) -> list[Path]:
    """What a client reads: everything but history, meta-info and older catalogs, which it does not ask for."""
    with repository.manager() as manager:
        head = manager.head()
    unread = {digest.text[2:] for digest in (head.history, head.metainfo) if digest}
    found = [path for path in repository.storage.rglob("*") if path.is_file()]
    return [
        path
        for path in found
        if path.name not in {".cvmfsreflog", ".cvmfs_master_replica", "pointers.lock"} and path.name[:38] not in unread
    ]


def test_one_changed_byte_is_never_served(repository: Repository, tmp_path: Path) -> None:
    good = read_back(repository, tmp_path / "cache-good")
    refused = 0
    with serving(repository.storage) as server:
        for number, path in enumerate(published_files(repository)):
            original = path.read_bytes()
            for at in {0, len(original) // 2, len(original) - 1}:
                changed = bytearray(original)
                changed[at] ^= 0x41
                path.write_bytes(changed)
                try:
                    told = refusal(repository, tmp_path / f"cache-{number}-{at}", server.url, good)
                finally:
                    path.write_bytes(original)
                if told is None:
                    assert path.name[:38] not in used_objects(repository), f"{path.name} was used although it is wrong"
                    continue
                assert "127.0.0.1" in told
                assert "\n" not in told
                assert path.name.startswith(".cvmfs") or path.name[:38] in told
                refused += 1
    assert refused >= 20
    assert read_back(repository, tmp_path / "cache-after") == good


def refusal(repository: Repository, cache: Path, url: str, good: dict) -> str | None:
    """What a reader is told of wrong bytes; None if it did not need them, and then it has read everything right."""
    try:
        found = read_back(repository, cache, url=url)
    except (OSError, IntegrityError) as error:
        return str(error)
    assert found == good
    return None


def used_objects(repository: Repository) -> set[str]:
    """Names of objects that the newest revision needs, without their first two digits."""
    with repository.manager() as manager:
        head = manager.head()
    return {head.root_catalog.text[2:], head.certificate.text[2:]}


def test_another_key_is_refused(repository: Repository, tmp_path: Path) -> None:
    from mica.repo.signing import new_key, public_pem

    (repository.keys / f"{repository.fqrn}.pub").chmod(0o600)
    (repository.keys / f"{repository.fqrn}.pub").write_bytes(public_pem(new_key()))
    with (
        serving(repository.storage) as server,
        pytest.raises(IntegrityError, match=r"not signed by any .* keys") as caught,
    ):
        read_back(repository, tmp_path / "cache", url=server.url)
    assert "127.0.0.1" in str(caught.value)
