"""Layer trees in repositories that are mounted as a whole, by us or by another client. Any thread."""

import errno
import os
from pathlib import Path

from mica.errors import MicaError, NotFoundError, UserError
from mica.files import mapped_os_errors
from mica.layers.implieddirectories import FACTS_MAX_BYTES, parse_implied
from mica.logs import logger
from mica.thin.descriptor import ThinDescriptor, ThinLayer
from mica.thin.layout import TREE
from mica.union.plainpaths import open_plainly

_log = logger(__name__)


def find_layer_trees(root: Path, descriptor: ThinDescriptor) -> tuple[Path, ...]:
    """Layers top first, in the repositories that are mounted below `root`. Their directories can still be replaced by
    links, so code that mounts them must name `root` in `LayerStack.untrusted`.

    Raises NotFoundError for a layer that is not there, UserError for one that is no directory or behind a link.
    """
    return tuple(_find_tree(root, layer) for layer in reversed(descriptor.layers))


def _find_tree(root: Path, layer: ThinLayer) -> Path:
    mounted = root / layer.fqrn
    names = layer.path.strip("/").split("/")
    with mapped_os_errors(f"look at layer {layer.url}"):
        try:
            # A repository that is not mounted yet may appear when its directory is looked up.
            os.close(open_plainly(mounted, ()))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"Repository {layer.fqrn} is not mounted below {root}.") from error
        try:
            os.close(open_plainly(mounted, names))
        except FileNotFoundError as error:
            raise NotFoundError(f"Layer {layer.url} is not in the newest revision of {layer.fqrn}.") from error
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            raise UserError(f"Layer {layer.url} is not a directory, or has a link in its path.") from error
    return mounted.joinpath(*names)


def read_implied(tree: Path) -> tuple[bytes, ...]:
    """The implied directories, from the layer facts beside the tree if mica made it. Errors in them go to the log."""
    facts = tree.parent.with_name(f"{tree.parent.name}.json")
    if tree.name != TREE.decode("ascii") or not facts.is_file() or facts.is_symlink():
        return ()
    fd = os.open(facts, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        data = file.read(FACTS_MAX_BYTES)
    try:
        return parse_implied(data, str(facts))
    except MicaError as error:
        _log.warning("%s is used without its layer facts: %s", tree, error)
        return ()
