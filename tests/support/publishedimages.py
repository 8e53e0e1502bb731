"""Images in a repository for tests: from layer directories to an OCI layout to a published image, and back.

A layer directory is overlay-ready: whiteouts are character devices 0:0, opaque directories carry
trusted.overlay.opaque. So the same directories are what is published and what a plain overlayfs can be mounted of.
Nothing here mounts: that is `mountpaths.py`.
"""

import contextlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demo import trees
from demo.ocilayout import Entry, write_image, write_layer
from tests.support.cli import mica
from tests.support.repositories import Repository, find_path, make_repository, opened_tree, read_file
from tests.support.tools import need

from mica.convert.publishing import describe
from mica.fetch.location import RepositoryLocation
from mica.oci.source import open_image
from mica.publish.rules import ObjectRules
from mica.repo.cutting import ChunkRule
from mica.thin.descriptor import ThinDescriptor

OPAQUE = "trusted.overlay.opaque"
FQRN = "images.example.org"
CHUNKS = ChunkRule(16 << 10, 64 << 10, 256 << 10)
"""Small, so that files of a tenth of a megabyte have several chunks."""

_LATEST_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class PublishedImage:
    """`layout` and `tag` are the original, for other programs; `unpacked` are the layer directories, bottom first,
    where the image was made of such."""

    repository: Repository
    descriptor: ThinDescriptor
    layout: Path
    tag: str
    unpacked: tuple[Path, ...] = ()

    @property
    def location(self) -> RepositoryLocation:
        """Where a node finds the repository: its storage, read in place."""
        repository = self.repository
        key = repository.keys / f"{repository.fqrn}.pub"
        return RepositoryLocation(repository.fqrn, (os.fspath(repository.storage),), (key,))

    def with_own_storage(self, storage: Path) -> "PublishedImage":
        """The same image from a copy of the storage, which a test may damage."""
        shutil.copytree(self.repository.storage, storage)
        return replace(self, repository=self.repository._replace(storage=storage))

    def stored_files(self, path: str, cache: Path) -> list[Path]:
        """The files in the storage that hold the content of a path, in the topmost layer that has it."""
        with opened_tree(self.repository, cache) as tree:
            for layer in reversed(self.descriptor.layers):
                with contextlib.suppress(FileNotFoundError):
                    facts: dict[str, Any] = tree.storage(find_path(tree, f"{layer.path}/{path}"))
                    chunks = facts.get("chunks")
                    names = [facts["object"]] if chunks is None else [f"{chunk['object']}P" for chunk in chunks]
                    return [self.repository.storage / "data" / name[:2] / name[2:] for name in names]
        raise FileNotFoundError(path)

    def layer_reports(self, cache: Path) -> list[dict[str, Any]]:
        """The layer facts of every layer."""
        with opened_tree(self.repository, cache) as tree:
            paths = [f"{os.path.dirname(layer.path)}.json" for layer in self.descriptor.layers]
            return [json.loads(read_file(tree, find_path(tree, path))) for path in paths]


def publish_layers(place: Path, layers: Sequence[Path]) -> PublishedImage:
    """Publish layer directories, bottom first, as an image. Afterwards their times of access are those of
    modification, as with file systems that know no others."""
    layout = place / "layout"
    write_image(
        layout, [write_layer(layout, layer_entries(layer), created_by=layer.name) for layer in layers],
        tag="t", created="2024-01-01T00:00:00Z", config={},
    )  # fmt: skip
    for layer in layers:
        _forget_accesses(layer)
    return replace(publish_layout(place, layout, "t", ObjectRules(chunking=CHUNKS)), unpacked=tuple(layers))


def publish_layout(place: Path, layout: Path, tag: str, rules: ObjectRules | None = None) -> PublishedImage:
    """Publish an image of an OCI layout in a repository of its own below `place`."""
    repository = make_repository(place, fqrn=FQRN, rules=rules or ObjectRules())
    source = f"oci:{layout}:{tag}"
    converted = mica(repository.state, "convert", source, FQRN, "--tag", "tests/image:1", timeout_s=300)
    assert converted.code == 0, converted.stderr
    with open_image(source) as image:
        return PublishedImage(repository, describe(image, FQRN, source), layout, tag)


def layer_entries(layer: Path) -> Iterator[Entry]:
    """A layer directory as the members of an archive."""
    for entry in trees.layer_of(trees.scan(layer, latest_ns=_LATEST_NS)):
        if stat.S_ISCHR(entry.mode) and entry.rdev == 0:
            yield trees.whiteout(entry.name)
        elif OPAQUE in entry.xattrs:
            yield replace(entry, xattrs={name: value for name, value in entry.xattrs.items() if name != OPAQUE})
            yield trees.opaque(entry.name)
        else:
            yield entry


def _forget_accesses(tree: Path) -> None:
    for directory, names, files in os.walk(os.fsencode(tree), topdown=False):
        for name in (*names, *files, b""):
            path = os.path.join(directory, name) if name else directory
            time_ns = os.lstat(path).st_mtime_ns
            os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


def unpack(image: PublishedImage, place: Path) -> Path:
    """The root directory that umoci makes of the original."""
    umoci = need("umoci", "umoci")
    subprocess.run([umoci, "unpack", "--image", f"{image.layout}:{image.tag}", place], check=True, capture_output=True)
    return place / "rootfs"
