"""Metadata images that a node makes by itself, for the top of a union and between its layers.

Pure, except that attributes and content are taken from the mounted files that the image's files are like.
"""

import io
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from mica.errors import IntegrityError, UserError
from mica.metaimage.inode import Inode
from mica.metaimage.writer import write_image
from mica.repo.localname import LocalName
from mica.texts import quoted
from mica.union.belowlinks import Sheet
from mica.union.directories import Attributes, Directory, read_attributes
from mica.union.layerview import File
from mica.unionsigns import OPAQUE, ORIGIN, REDIRECT, is_whiteout_device

Entries = Sequence[tuple[bytes, Inode]]


def directory_entries(directories: Sequence[Directory]) -> Entries:
    """These directories alone."""
    return [(b"" if one.path == b"/" else one.path, _inode(one.attributes())) for one in directories]


OBJECT_DIRECTORIES: Final = tuple(b"%02x" % number for number in range(256))


def mask_entries(root: Directory, names: Iterable[bytes] = OBJECT_DIRECTORIES) -> Entries:
    """A whiteout for each of these directories of objects."""
    return [(b"", _inode(root.attributes())), *((b"/" + name, Inode(stat.S_IFCHR)) for name in names)]


def names_to_mask(layers: Sequence[Path]) -> list[bytes]:
    """The directories of objects that these mounted layers, top first, would show below their own files: all but those
    whose name an image has itself.

    Raises UserError for a layer with a file of such a name below another layer: overlayfs looks for the content of that
    one's files along the layers, and stops at the first that is not a directory (ovl_lookup_layer(), fs/overlayfs).
    """
    shown: dict[bytes, bool] = {}
    for number, layer in enumerate(map(os.fsencode, layers)):
        for name in set(os.listdir(layer)).intersection(OBJECT_DIRECTORIES):
            status = os.lstat(layer + b"/" + name)
            if number and not stat.S_ISDIR(status.st_mode):
                raise UserError(
                    f"A lower layer of the image has /{name.decode('ascii')}, which is not a directory. Without data-"
                    "only layers the content of other files cannot be found then.",
                    hint="Use the method repository, or Linux 6.5 or newer.",
                )
            shown.setdefault(name, not is_whiteout_device(status))
    return [name for name in OBJECT_DIRECTORIES if not shown.get(name)]


def sheet_entries(sheet: Sheet) -> Entries:
    """All of a sheet, whose files are like files of metadata images. Raises OSError, and IntegrityError for a file
    without a local name of its content."""
    links = _Links(sheet)
    with_whiteouts = {path.rpartition(b"/")[0] or b"/" for path, file in sheet.files.items() if file.is_whiteout}
    entries = []
    for path in sheet.paths:
        file = sheet.files[path]
        inode = Inode(stat.S_IFCHR) if file.is_whiteout else _file_inode(file, links)
        signs = {OPAQUE: b"y"} if file.is_opaque else {}
        signs |= {ORIGIN: b""} if path in with_whiteouts else {}
        entries.append((b"" if path == b"/" else path, inode._replace(xattrs={**inode.xattrs, **signs})))
    return entries


class _Links:
    """The files of a sheet that have several names in it."""

    def __init__(self, sheet: Sheet) -> None:
        self._names: dict[tuple[int, int], int] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        for file in sheet.files.values():
            if not file.is_whiteout and not file.is_directory:
                status = os.lstat(file.like)
                if status.st_nlink > 1:
                    key = status.st_dev, status.st_ino
                    self._names[key] = self._names.get(key, 0) + 1
                    self._numbers.setdefault(key, len(self._numbers) + 1)

    def of(self, status: os.stat_result) -> tuple[int, int]:
        """Number of the group, 0 for none, and how many names it has."""
        key = status.st_dev, status.st_ino
        count = self._names.get(key, 1)
        return (self._numbers[key], count) if count > 1 else (0, 1)


def _file_inode(file: File, links: _Links) -> Inode:
    inode = _inode(read_attributes(file.like))
    if file.is_directory:
        return inode
    status = os.lstat(file.like)
    group, count = links.of(status)
    inode = inode._replace(links=count, group=group)
    if file.is_link:
        return inode._replace(target=os.readlink(file.like))
    if not stat.S_ISREG(file.mode):
        return inode._replace(device=status.st_rdev)
    if not status.st_size:
        return inode
    redirect = os.getxattr(file.like, REDIRECT, follow_symlinks=False)
    try:
        content = LocalName.parse_redirect(redirect)
    except ValueError as error:
        raise IntegrityError(f"{quoted(file.like)} does not name its content.") from error
    return inode._replace(size=status.st_size, content=content)


def format_image(entries: Entries) -> bytes:
    image = io.BytesIO()
    write_image(entries, image)
    return image.getvalue()


def _inode(file: Attributes) -> Inode:
    xattrs = {os.fsencode(name): value for name, value in file.xattrs.items()}
    mtime = divmod(file.mtime_ns, 1_000_000_000)
    return Inode(file.mode, file.uid, file.gid, *mtime, xattrs=xattrs)
