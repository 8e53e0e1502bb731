"""A wish: a layer, and all that a worker on another machine needs to read it. Pure, but for the name of this machine.

Where a layer can be read decides who may take it. The name of its queue says so:

    any/<repository>/<time>.<hex>           from a registry: every worker
    host/<host>/<repository>/<time>.<hex>   from a file: workers of this machine
    own/<random>/<repository>/<time>.<hex>  from Docker's daemon: the conversion that asks, which has it open

Names of queues are sorted as texts, so the time, in milliseconds of constant length, makes the oldest wish the first.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from mica.errors import UserError
from mica.oci.image import ImageSource, LayerSource
from mica.thin.layout import hex_of

_FILES = ("oci", "oci-archive", "docker-archive")
_HOST_CHARACTERS = 64


class Wish(NamedTuple):
    """`digest` is that of the compressed layer; `source` as `open_choice` takes it: it has an image with the layer."""

    repository: str
    digest: str
    diff_id: str
    source: str

    def find_in(self, images: Iterable[ImageSource]) -> tuple[ImageSource, LayerSource] | None:
        """The first image that has the layer, and the layer."""
        for image in images:
            for layer in image.layers:
                if (layer.digest, layer.diff_id) == (self.digest, self.diff_id):
                    return image, layer
        return None


def wish_for(repository: str, source: str, image: ImageSource, layer: LayerSource) -> Wish:
    """`source` is what the image was opened from."""
    scheme, _, rest = source.partition(":")
    if scheme == "docker" and image.reference is not None:
        # By digest: the tag may lead to another image when the worker reads it.
        reference = image.reference
        source = f"docker://{reference.registry}/{reference.repository}@{image.manifest_digest}"
    elif scheme in _FILES:
        source = f"{scheme}:{os.path.abspath(rest)}"
    return Wish(repository, layer.digest, layer.diff_id, source)


def queue_name(wish: Wish) -> str:
    scheme = wish.source.partition(":")[0]
    place = "any" if scheme == "docker" else f"host/{_host()}" if scheme in _FILES else f"own/{secrets.token_hex(8)}"
    return f"{place}/{wish.repository}/{time.time_ns() // 1_000_000:014d}.{hex_of(wish.digest)[:32]}"


def readable_here(repository: str) -> list[str]:
    """Patterns of the queues whose layers a worker of this machine can read."""
    return [f"any/{repository}/*", f"host/{_host()}/{repository}/*"]


def format_wish(wish: Wish) -> str:
    return json.dumps({"source": wish.source, "diff_id": wish.diff_id})


def parse_wish(text: str, repository: str, digest: str) -> Wish:
    """Raises UserError for what another version wrote."""
    try:
        document: dict[str, Any] = json.loads(text)
        return Wish(repository, digest, str(document["diff_id"]), str(document["source"]))
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"The queue's entry for layer {digest} of {repository} cannot be read.") from error


def _host() -> str:
    return socket.gethostname()[:_HOST_CHARACTERS]
