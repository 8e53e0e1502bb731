"""Puts finished layers into their places in the caller's transaction: a few rows for each, whatever its size.

Of the catalogs only those on the way to a layer are loaded and written again: the root, `.layers` and `.layers/<xx>`.
One thread.
"""

from mica.convert.staging import StagedLayer
from mica.publish.catalogtree import base_name, directory_entry, parent_path
from mica.publish.transaction import Transaction
from mica.thin.layout import LAYERS, layer_path


def attach_layer(layer: StagedLayer, transaction: Transaction) -> bool:
    """Put a staged layer into its place; False if it is in the repository already."""
    catalogs = transaction.catalogs
    path = layer_path(layer.digest)
    if catalogs.find(path) is not None:
        return False
    directory = parent_path(path)
    _make_room(transaction, directory)
    catalogs.attach(path, layer.sealed)
    for entry, chunks in layer.beside:
        catalogs.put(directory + b"/" + entry.name, entry, chunks)
    return True


def _make_room(transaction: Transaction, directory: bytes) -> None:
    """`.layers` and `.layers/xx`, each with a catalog of its own, so that no catalog grows with all layers."""
    for path in (LAYERS, directory):
        if transaction.catalogs.find(path) is None:
            transaction.catalogs.put(path, directory_entry(base_name(path)))
            transaction.catalogs.nest(path, transaction.marker())
