"""Layers of an engine for tests: archives member by member, and a program that changes everything that can change."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.support.dockers import add_member
from tests.support.tars import by_tarfile

from mica.engine.layers import EngineLayers


def archive_of(*fills: Callable[[tarfile.TarFile], None]) -> bytes:
    def fill(tar: tarfile.TarFile) -> None:
        for one in fills:
            one(tar)

    return by_tarfile(fill)


def adding(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> Callable[[tarfile.TarFile], None]:
    return lambda tar: add_member(tar, name, kind, **fields)  # type: ignore[arg-type]


def fill(layers: EngineLayers, layer_id: str, parent: str | None, archive: bytes) -> None:
    layers.create(layer_id, parent, is_writable=False)
    layers.apply(layer_id, io.BytesIO(archive))


BASE = archive_of(
    adding(".", tarfile.DIRTYPE, mode=0o711, uid=3),
    adding("d/a", data=b"a"),
    adding("d/b", data=b"b" * 100),
    adding("o/hidden"),
    adding("m/deep/file", data=b"deep"),
)


def work_in(merged: Path) -> None:
    """What a program may do on top of BASE."""
    (merged / "d/a").unlink()
    os.chown(merged / "d/b", 9, 9)
    shutil.rmtree(merged / "o")
    (merged / "o").mkdir()
    (merged / "o/new").write_bytes(b"new")
    shutil.move(merged / "m", merged / "moved")
    os.link(merged / "o/new", merged / "link")
    os.setxattr(merged / "o/new", "user.x", b"1")
