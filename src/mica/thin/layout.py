"""Where images live inside a repository (docs/format/thin-image.md): pure functions from digests and names to paths.

/.layers/<d[:2]>/<d>/layerfs/            the layer tree; d = hex of the compressed layer's digest
/.layers/<d[:2]>/<d>/.cvmfscatalog       each layer is a nested catalog, so are .layers and .layers/<d[:2]>
/.layers/<d[:2]>/<d>.erofs               its metadata image
/.layers/<d[:2]>/<d>.trace               what programs ask for at their start, in images that have it as their top layer
/.layers/<d[:2]>/<d>.json                layer facts: what it is and what was changed to fit
/.chains-oci/<c[:2]>/<c>                 relative link from an OCI chain id to the layer on top of it
/.images/<registry>/<repository>/<tag or digest>.json
"""

import hashlib
from collections.abc import Sequence

from mica.oci.reference import Reference

LAYERS = b"/.layers"
CHAINS = b"/.chains-oci"
IMAGES = b"/.images"
TREE = b"layerfs"
_IMAGE_SUFFIX = b".erofs"
_TRACE_SUFFIX = b".trace"


def hex_of(digest: str) -> str:
    """The hex part of `sha256:…`."""
    return digest.partition(":")[2]


def layer_path(digest: str) -> bytes:
    """Directory of a layer; `digest` is that of its compressed form."""
    text = hex_of(digest).encode("ascii")
    return b"%s/%s/%s" % (LAYERS, text[:2], text)


def tree_path(digest: str) -> str:
    return f"{layer_path(digest).decode('ascii')}/{TREE.decode('ascii')}"


def metadata_image_path(digest: str) -> bytes:
    """Beside the layer: who wants the image alone needs no catalog of the tree (docs/format/thin-image.md)."""
    return layer_path(digest) + _IMAGE_SUFFIX


def metadata_image_of_tree(path: bytes) -> bytes | None:
    """The same from the path of a layer tree; None for a tree elsewhere."""
    return _beside_tree(path, _IMAGE_SUFFIX)


def trace_path(digest: str) -> bytes:
    return layer_path(digest) + _TRACE_SUFFIX


def trace_of_tree(path: bytes) -> bytes | None:
    """The same from the path of a layer tree; None for a tree elsewhere."""
    return _beside_tree(path, _TRACE_SUFFIX)


def _beside_tree(path: bytes, suffix: bytes) -> bytes | None:
    layer, _, name = path.rpartition(b"/")
    return layer + suffix if name == TREE and layer.startswith(LAYERS + b"/") else None


def facts_path(digest: str) -> bytes:
    return layer_path(digest) + b".json"


def chain_path(chain_id: str) -> bytes:
    text = hex_of(chain_id).encode("ascii")
    return b"%s/%s/%s" % (CHAINS, text[:2], text)


def chain_target(digest: str) -> bytes:
    """What a chain's link holds: relative, so that it works wherever the repository is mounted."""
    return b"../.." + layer_path(digest)


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
