"""Where images live inside a repository (docs/format/thin-image.md): pure functions from digests and names to paths.

/.layers/<d[:2]>/<d>/layerfs/            the layer tree; d = hex of the compressed layer's digest
/.layers/<d[:2]>/<d>/.cvmfscatalog       each layer is a nested catalog, so are .layers and .layers/<d[:2]>
/.layers/<d[:2]>/<d>.erofs               its metadata image of version 1, or
/.layers/<d[:2]>/<d>.2.erofs             of version 2
/.layers/<d[:2]>/<d>.trace               what programs ask for at their start, in images that have it as their top layer
/.layers/<d[:2]>/<d>.json                layer facts: what it is and what was changed to fit
/.chains-oci/<c[:2]>/<c>                 relative link from an OCI chain id to the layer on top of it
/.images/<registry>/<repository>/<tag or digest>.json
"""

import hashlib
import re
from collections.abc import Sequence

from mica.oci.reference import Reference

LAYERS = b"/.layers"
CHAINS = b"/.chains-oci"
IMAGES = b"/.images"
TREE = b"layerfs"
_CHAIN_TARGET = re.compile(rb"\.\./\.\./\.layers/[0-9a-f]{2}/([0-9a-f]{64}|[0-9a-f]{128})")
_SHA256_HEX = 64
_IMAGE_SUFFIXES = {1: b".erofs", 2: b".2.erofs"}
_TRACE_SUFFIX = b".trace"
_FACTS_SUFFIX = b".json"


def hex_of(digest: str) -> str:
    """The hex part of `sha256:…`."""
    return digest.partition(":")[2]


def layer_path(digest: str) -> bytes:
    """Directory of a layer; `digest` is that of its compressed form."""
    text = hex_of(digest).encode("ascii")
    return b"%s/%s/%s" % (LAYERS, text[:2], text)


def tree_path(digest: str) -> str:
    return f"{layer_path(digest).decode('ascii')}/{TREE.decode('ascii')}"


def metadata_image_path(digest: str, version: int) -> bytes:
    """Beside the layer: who wants the image alone needs no catalog of the tree (docs/format/thin-image.md).

    Each version has a name of its own, so that a node that does not know it makes its own image.
    """
    return layer_path(digest) + _IMAGE_SUFFIXES[version]


def metadata_image_paths(digest: str) -> list[bytes]:
    """Where the image of a layer may be; it is in one of these places."""
    return [layer_path(digest) + suffix for suffix in _IMAGE_SUFFIXES.values()]


def metadata_images_of_tree(path: bytes) -> list[bytes]:
    """The same from the path of a layer tree; none for a tree elsewhere."""
    found = [_beside_tree(path, suffix) for suffix in _IMAGE_SUFFIXES.values()]
    return [beside for beside in found if beside is not None]


def trace_path(digest: str) -> bytes:
    return layer_path(digest) + _TRACE_SUFFIX


def trace_of_tree(path: bytes) -> bytes | None:
    """The same from the path of a layer tree; None for a tree elsewhere."""
    return _beside_tree(path, _TRACE_SUFFIX)


def _beside_tree(path: bytes, suffix: bytes) -> bytes | None:
    layer, _, name = path.rpartition(b"/")
    return layer + suffix if name == TREE and layer.startswith(LAYERS + b"/") else None


def facts_path(digest: str) -> bytes:
    return layer_path(digest) + _FACTS_SUFFIX


def facts_of_tree(path: bytes) -> bytes | None:
    """The same from the path of a layer tree; None for a tree elsewhere."""
    return _beside_tree(path, _FACTS_SUFFIX)


def chain_path(chain_id: str) -> bytes:
    text = hex_of(chain_id).encode("ascii")
    return b"%s/%s/%s" % (CHAINS, text[:2], text)


def chain_target(digest: str) -> bytes:
    """What a chain's link holds: relative, so that it works wherever the repository is mounted."""
    return b"../.." + layer_path(digest)


def chained_layer(target: bytes) -> str:
    """The digest of the layer that a chain's link leads to; empty for a link of any other form."""
    match = _CHAIN_TARGET.fullmatch(target)
    if match is None:
        return ""
    text = match[1].decode("ascii")
    return f"{'sha256' if len(text) == _SHA256_HEX else 'sha512'}:{text}"


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """ChainID of every layer from the bottom (OCI image-spec config.md, "Layer ChainID")."""
    chains: list[str] = []
    for diff_id in diff_ids:
        text = f"{chains[-1]} {diff_id}" if chains else ""
        chains.append("sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest() if text else diff_id)
    return chains


def image_path(reference: Reference) -> bytes:
    """The record of an image. A digest's colon is kept: `sha256:….json`."""
    version = reference.tag or reference.digest or "latest"
    return b"%s/%s/%s/%s.json" % (IMAGES, reference.registry.encode(), reference.repository.encode(), version.encode())
