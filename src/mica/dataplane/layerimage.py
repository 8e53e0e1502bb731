"""The metadata image of a layer for this node: the published one, else one made of the layer's catalogs.

    obtain_layer_image(client, root, b"/.layers/ab/ab…/layerfs", target)

Both are the same bytes where the layer was converted by mica. A published image costs the catalogs above the layer,
which are small, and one object (a few at once for a large layer); it is read through before it gets its name, since the
kernel will be given it. Any thread; two for one target only in different processes.
"""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from mica.cache.quota import Reservation
from mica.dataplane.catalogpath import Located, locate
from mica.dataplane.imagecheck import Check, check_image
from mica.dataplane.layerwalk import walk_layer
from mica.errors import IntegrityError, NotFoundError
from mica.fetch.client import RepositoryClient
from mica.files import allocated_bytes, mapped_os_errors, owned_fd, replacing_file
from mica.metaimage.fromcatalog import InodeMaker
from mica.metaimage.inode import IMAGE_BYTES_MAX
from mica.metaimage.writer import STANDARD_LIMITS, ImageLimits, write_image
from mica.repo.catalog import NestedCatalog
from mica.repo.entry import Flag
from mica.repo.objectname import file_object
from mica.texts import quoted
from mica.thin.layout import metadata_images_of_tree

_BLOCK_BYTES = 1 << 20
_BEHIND_BYTES = 2 << 30
"""Room in an image for directories and chunk lists, which have limits of their own."""


def obtain_layer_image(
    client: RepositoryClient,
    root: NestedCatalog,
    tree_path: bytes,
    target: Path,
    *,
    limits: ImageLimits = STANDARD_LIMITS,
    check: Check = check_image,
) -> None:
    """Write the image of the layer tree at a path of the revision with that root catalog to a file, whole or not at
    all. Raises NotFoundError if there is no such tree, IntegrityError if image or catalogs are wrong, UserError if the
    tree is larger than the limits, and what fetching raises."""
    published, found = _locate_image(client, root, tree_path)
    with mapped_os_errors(f"write the metadata image {target}"), client.cache.reserving(0) as room:
        with replacing_file(target, mode=0o600, durable=False) as file:
            if found is not None and found.row.entry.is_regular:
                what = f"{quoted(published)} of {client.fqrn}"
                _fetch_image(client, found, file, what, room)
                check(file, what)
            else:
                generate_layer_image(client, root, tree_path, file, limits=limits)
                file.flush()
            # The size of an image that is made here is known only now.
            size = allocated_bytes(os.fstat(file.fileno()))
            room.cover(size)
        room.keep(size)


def _locate_image(client: RepositoryClient, root: NestedCatalog, tree_path: bytes) -> tuple[bytes, Located | None]:
    """The published image and its path. Images lie beside each other, so looking for all costs no more than for one."""
    for path in metadata_images_of_tree(tree_path):
        if (found := locate(client, root, path)) is not None:
            return path, found
    return b"", None


def generate_layer_image(
    client: RepositoryClient,
    root: NestedCatalog,
    tree_path: bytes,
    file: BinaryIO,
    *,
    limits: ImageLimits = STANDARD_LIMITS,
) -> None:
    """Make the image from the catalogs alone. Raises as `obtain_layer_image` does."""
    top = locate(client, root, tree_path)
    if top is None:
        raise NotFoundError(f"There is no layer {quoted(tree_path)} in {client.fqrn}.")
    maker = InodeMaker()
    try:
        write_image(walk_layer(client, top, tree_path, maker), file, maker.chunk_lists, limits=limits)
    except ValueError as error:
        raise IntegrityError(f"The layer {quoted(tree_path)} in {client.fqrn} is no tree: {error}.") from error


def _fetch_image(client: RepositoryClient, found: Located, file: BinaryIO, what: str, room: Reservation) -> None:
    entry = found.row.entry
    if entry.size > IMAGE_BYTES_MAX + _BEHIND_BYTES:
        raise IntegrityError(f"{what} has {entry.size} bytes, more than a metadata image may have.")
    try:
        if entry.flags & Flag.CHUNKED:
            chunks = found.catalog.chunks(found.row)
            with client.open_part(chunks, entry.compression) as part:
                client.fetch_chunks(part, part.missing(0, entry.size))
                room.cover(entry.size)
                _copy(part.fd, file)
        elif (name := file_object(entry)) is not None:
            with owned_fd(client.open_object(name)) as fd:
                room.cover(entry.size)
                _copy(fd, file)
    except ValueError as error:
        raise IntegrityError(f"{what} has an impossible entry: {error}.") from error
    file.flush()


def _copy(source: int, target: BinaryIO) -> None:
    with open(source, "rb", closefd=False) as content:
        content.seek(0)
        shutil.copyfileobj(content, target, _BLOCK_BYTES)
