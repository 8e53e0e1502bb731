"""Places of images inside a repository."""

import hashlib
import posixpath

import pytest

from mica.errors import UserError
from mica.oci.reference import Reference
from mica.thin.layout import (
    chain_ids,
    chain_path,
    chain_target,
    chained_layer,
    facts_path,
    hex_of,
    image_path,
    layer_path,
    metadata_image_path,
    metadata_image_paths,
    metadata_images_of_tree,
    tree_path,
)

DIGEST = "sha256:" + "ab" * 32
DIFF_IDS = [f"sha256:{letter * 64}" for letter in "abc"]


def sha256(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_layer_is_under_its_first_two_letters() -> None:
    assert layer_path(DIGEST) == b"/.layers/ab/" + b"ab" * 32
    assert tree_path(DIGEST) == "/.layers/ab/" + "ab" * 32 + "/layerfs"
    assert hex_of(DIGEST) == "ab" * 32


def test_image_and_facts_lie_beside_the_layer() -> None:
    assert metadata_image_path(DIGEST, 1) == b"/.layers/ab/" + b"ab" * 32 + b".erofs"
    assert metadata_image_path(DIGEST, 2) == b"/.layers/ab/" + b"ab" * 32 + b".2.erofs"
    assert metadata_image_paths(DIGEST) == [metadata_image_path(DIGEST, version) for version in (1, 2)]
    assert facts_path(DIGEST) == b"/.layers/ab/" + b"ab" * 32 + b".json"
    assert metadata_images_of_tree(tree_path(DIGEST).encode()) == metadata_image_paths(DIGEST)
    for elsewhere in (b"", b"/", b"/layerfs", b"/.layersx/ab/cd/layerfs", tree_path(DIGEST).encode() + b"/usr"):
        assert metadata_images_of_tree(elsewhere) == []


def test_chain_ids_follow_the_specification() -> None:
    """OCI image-spec, config.md: ChainID(L0) = DiffID(L0), ChainID(L0|…|Ln) = Digest(ChainID(L0|…|Ln-1) + " " + Ln)."""
    first, second, third = chain_ids(DIFF_IDS)
    assert first == DIFF_IDS[0]
    assert second == sha256(f"{DIFF_IDS[0]} {DIFF_IDS[1]}")
    assert third == sha256(f"{second} {DIFF_IDS[2]}")
    # Written down from `printf '%s %s' sha256:aa… sha256:bb… | sha256sum`, so that test and code cannot err together.
    assert second == "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"
    assert chain_ids([]) == []


def test_chain_links_lead_to_layers() -> None:
    path = chain_path(DIFF_IDS[2])
    assert path == b"/.chains-oci/cc/" + b"c" * 64
    led = posixpath.normpath(posixpath.join(posixpath.dirname(path), chain_target(DIGEST)))
    assert led == layer_path(DIGEST)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("debian", "/.images/docker.io/library/debian/latest.json"),
        ("debian:12", "/.images/docker.io/library/debian/12.json"),
        ("ghcr.io/a/b/c:v1.0", "/.images/ghcr.io/a/b/c/v1.0.json"),
        ("localhost:5000/x:1", "/.images/localhost:5000/x/1.json"),
        (f"a/b@{DIGEST}", f"/.images/docker.io/a/b/{DIGEST}.json"),
        (f"a/b:tag@{DIGEST}", "/.images/docker.io/a/b/tag.json"),
    ],
)
def test_record_is_under_the_image_s_name(name: str, path: str) -> None:
    assert image_path(Reference.parse(name)).decode() == path


@pytest.mark.parametrize("name", ["a/b:..", "a/b:.", "../a", "a/../b", "a/b:x/y", "a//b", "a/./b", "/a"])
def test_no_name_leaves_the_images(name: str) -> None:
    with pytest.raises(UserError, match="not an image name"):
        Reference.parse(name)


@pytest.mark.parametrize("digest", ["sha256:" + "ab" * 32, "sha512:" + "cd" * 64])
def test_layer_of_a_chain_link(digest: str) -> None:
    assert chained_layer(chain_target(digest)) == digest


@pytest.mark.parametrize("target", [b"", b"../../.layers/ab/ab", b"/.layers/ab/" + b"ab" * 32, b"../" + b"ab" * 32])
def test_link_of_another_form_is_no_chain_link(target: bytes) -> None:
    assert chained_layer(target) == ""
