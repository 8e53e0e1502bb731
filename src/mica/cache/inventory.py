"""What is in a cache: every file on its disk, as part of an item that is removed as one.

    inventory = take_inventory(root)
    inventory.items, inventory.size

An item is a file with all its names, and with the files that are useless without it: a part and its map, an image and
its .json file. The chunk lists that images and parts need are known by their names. Reads directories, the .json files
of images and the journals of object filesystems, and opens nothing else: 100,000 files take less than a second. Any
thread; changes made meanwhile may be seen or not.
"""

import enum
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mica.cache.shown import ShownNames
from mica.files import allocated_bytes
from mica.repo.localname import LocalName


class Kind(enum.StrEnum):
    """By directory of the cache."""

    OBJECT = "objects"
    PART = "parts"
    LIST = "lists"
    IMAGE = "images"
    UNSIZED = "unsized"


class Item(NamedTuple):
    """`names` are below the root in the order in which they have to be removed, the content last. `size` is what it
    takes on disk in bytes. `used` is when it came or was last known to be used, `changed` when its inode last changed
    (a new link changes it too); both in nanoseconds since 1970."""

    kind: Kind
    names: tuple[str, ...]
    inode: int
    size: int
    used: int
    changed: int

    @property
    def name(self) -> str:
        return self.names[-1]

    @property
    def local_name(self) -> LocalName | None:
        """The name under which an object filesystem may show it."""
        directory, _, name = self.name.partition("/")
        try:
            if directory == Kind.PART:
                return LocalName.parse_flat(name)
            return LocalName.parse(name) if directory == Kind.OBJECT else None
        except ValueError:
            return None

    @property
    def is_stray(self) -> bool:
        """Whether it is a temporary file, which will never be asked for."""
        return self.name.rpartition("/")[2].startswith(".")


@dataclass(frozen=True, slots=True)
class Inventory:
    """`needed` are the names of the chunk lists that images, parts and files in use need; None if not known."""

    items: list[Item]
    needed: frozenset[str] | None

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)


def take_inventory(root: Path) -> Inventory:
    """Raises OSError for what cannot be read; files that vanish meanwhile are left out."""
    text = os.fspath(root)
    parts = dict(_files(text, Kind.PART))
    linked = _Linked()
    items = list(_parts(parts, linked))
    for name, status in _fan(text, "handover"):
        linked.add(status, (name,))
    for name, status in _fan(text, Kind.OBJECT):
        if status.st_nlink > 1:
            linked.add(status, (name,))
        else:
            items.append(_item(Kind.OBJECT, (name,), status))
    items += linked.items()
    images = dict(_files(text, Kind.IMAGE))
    items += _images(images)
    for kind in (Kind.LIST, Kind.UNSIZED):
        items += [_item(kind, (name,), status) for name, status in _files(text, kind)]
    return Inventory(items, _needed_lists(root, parts, images))


class _Linked:
    """Files with more than one name, each as one item."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[tuple[str, ...], os.stat_result, int]] = {}

    def add(self, status: os.stat_result, names: tuple[str, ...], more_size: int = 0) -> None:
        before, _, size = self._files.get(status.st_ino, ((), None, 0))
        self._files[status.st_ino] = (*before, *names), status, size + more_size

    def items(self) -> Iterator[Item]:
        for names, status, more_size in self._files.values():
            yield _item(Kind.OBJECT, names, status, more_size)


def _parts(files: dict[str, os.stat_result], linked: _Linked) -> Iterator[Item]:
    """Parts that are not whole yet. Those with another name go to `linked`: they are objects."""
    for name, status in files.items():
        if name.endswith(".map"):
            if name.removesuffix(".map") not in files:
                yield _item(Kind.PART, (name,), status)
            continue
        mark = files.get(f"{name}.map")
        names, more_size = ((name,), 0) if mark is None else ((f"{name}.map", name), allocated_bytes(mark))
        if status.st_nlink > 1:
            linked.add(status, names, more_size)
        else:
            yield _item(Kind.PART, names, status, more_size)


def _images(files: dict[str, os.stat_result]) -> Iterator[Item]:
    for name, status in files.items():
        record = f"{name}.json"
        if name.endswith(".json"):
            if name.removesuffix(".json") not in files:
                yield _item(Kind.IMAGE, (name,), status)
        elif record in files:
            yield _item(Kind.IMAGE, (record, name), status, allocated_bytes(files[record]))
        else:
            yield _item(Kind.IMAGE, (name,), status)


def _needed_lists(
    root: Path, parts: dict[str, os.stat_result], images: dict[str, os.stat_result]
) -> frozenset[str] | None:
    with ShownNames(root) as shown:
        needed = {list_name(name) for name in shown.names() if name.in_chunks}
    for name in parts:
        if not name.endswith(".map"):
            try:
                needed.add(list_name(LocalName.parse_flat(name.removeprefix("parts/"))))
            except ValueError:
                continue
    for name in images:
        if name.endswith(".json") and not name.startswith("images/."):
            lists = _lists_of(root / name)
            if lists is None:
                return None
            needed.update(lists)
    return frozenset(needed)


def lists_of_image(root: Path, item: Item) -> list[str]:
    """Names of the chunk lists that an image's record says it needs."""
    return [] if len(item.names) == 1 else _lists_of(root / item.names[0]) or []


def list_name(name: LocalName) -> str:
    """The name of the chunk list of a file in chunks."""
    return f"lists/{name.digest.text}"


def _lists_of(record: Path) -> list[str] | None:
    """Names of the chunk lists of an image; None if its .json file does not say."""
    try:
        lists = json.loads(record.read_bytes())["lists"]
        return [f"lists/{digest}" for digest in lists]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        return None


def _item(kind: Kind, names: tuple[str, ...], status: os.stat_result, more_size: int = 0) -> Item:
    size = allocated_bytes(status) + more_size
    return Item(kind, names, status.st_ino, size, status.st_mtime_ns, status.st_ctime_ns)


def _fan(root: str, name: str) -> Iterator[tuple[str, os.stat_result]]:
    for directory in _entries(f"{root}/{name}"):
        yield from _files(root, f"{name}/{directory.name}")


def _files(root: str, name: str) -> Iterator[tuple[str, os.stat_result]]:
    for entry in _entries(f"{root}/{name}"):
        if entry.is_file(follow_symlinks=False):
            try:
                yield f"{name}/{entry.name}", entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
