"""Checking a cache: names, sizes, content, and that files that need each other are all there.

    for finding in Verifier(root, elsewhere).verify(inventory): …

Content that cannot be proved here is compared with what servers have, if any are given. Nothing is changed; `repair`
removes a wrong item, or unmarks its wrong chunks, so that it is fetched again. Files that vanish meanwhile are left
out. Several threads look at files.
"""

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from mica.cache.cache import parse_unsized_name
from mica.cache.eviction import Taken
from mica.cache.inventory import Inventory, Item, Kind, list_name, lists_of_image
from mica.cache.proof import Content, Prover, Verdict
from mica.cache.remover import Remover
from mica.digest import Digest, Suffix, digest_of
from mica.errors import IntegrityError, MicaError
from mica.fetch.download import Fetcher
from mica.fetch.verify import copy_verified
from mica.files import owned_fd
from mica.metaimage.reader import read_image
from mica.repo.chunklist import parse_chunk_list
from mica.repo.entry import Chunk
from mica.repo.localname import LocalName
from mica.repo.objectname import ObjectName
from mica.repo.objects import Compression
from mica.streams import Readable

_CONTENT_LIMIT: Final = 4 << 30
_WHOLE_FILES: Final = (Suffix.FILE, Suffix.CATALOG, Suffix.HISTORY)
"""What a file of the cache may be; its name does not tell."""


class Finding(NamedTuple):
    """`reason` is empty for a right item. `chunks` are the numbers of wrong chunks, if nothing else is wrong."""

    item: Item
    verdict: Verdict
    reason: str = ""
    chunks: tuple[int, ...] = ()


class _Bad(Exception):
    """What is wrong with an item."""


class Verifier:
    """`elsewhere` are servers that may have objects."""

    def __init__(self, root: Path, elsewhere: Sequence[Fetcher] = ()) -> None:
        self._root = root
        self._elsewhere = elsewhere
        self._prover = Prover()

    def verify(self, inventory: Inventory) -> Iterator[Finding]:
        """A finding for each item that can be judged, in the order of the items."""
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="verify") as pool:
            for finding in pool.map(self._judge, inventory.items):
                if finding is not None:
                    yield finding

    def _judge(self, item: Item) -> Finding | None:
        if item.is_stray or item.name.endswith((".map", ".json")):
            return None
        judges: dict[Kind, Callable[[Item, int], Finding]] = {
            Kind.OBJECT: self._object, Kind.PART: self._part, Kind.LIST: self._list, Kind.IMAGE: self._image,
            Kind.UNSIZED: self._unsized,
        }  # fmt: skip
        try:
            with owned_fd(os.open(self._root / item.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
                return judges[item.kind](item, fd)
        except FileNotFoundError:
            return None
        except _Bad as bad:
            return Finding(item, Verdict.WRONG, str(bad))
        except (ValueError, IntegrityError) as error:
            return Finding(item, Verdict.WRONG, str(error).rstrip("."))
        except EOFError:
            return Finding(item, Verdict.WRONG, "it is cut short")
        except OSError as error:
            return Finding(item, Verdict.WRONG, f"it cannot be read: {error.strerror}")

    def _object(self, item: Item, fd: int) -> Finding:
        name = LocalName.parse(item.name.removeprefix("objects/"))
        self._require_size(fd, name.size)
        if not name.in_chunks:
            return _finding(item, self._content(Content(fd, 0, name.size), name.digest, name.compression, _WHOLE_FILES))
        try:
            chunks = self._chunks(name)
        except FileNotFoundError:
            return Finding(item, Verdict.UNPROVEN, "its chunk list is not here")
        return self._in_chunks(item, fd, name, chunks, range(len(chunks)))

    def _part(self, item: Item, fd: int) -> Finding:
        name = LocalName.parse_flat(item.name.removeprefix("parts/"))
        self._require_size(fd, name.size)
        try:
            chunks = self._chunks(name)
        except FileNotFoundError as error:
            raise _Bad("its chunk list is not here, without which it is of no use") from error
        marks = b"" if len(item.names) == 1 else (self._root / item.names[0]).read_bytes()
        if marks and len(marks) != len(chunks):
            raise _Bad(f"its map is of {len(marks)} chunks, and it has {len(chunks)}")
        return self._in_chunks(item, fd, name, chunks, [number for number, mark in enumerate(marks) if mark])

    def _in_chunks(
        self, item: Item, fd: int, name: LocalName, chunks: Sequence[Chunk], numbers: Sequence[int]
    ) -> Finding:
        verdicts = {}
        for number in numbers:
            chunk = chunks[number]
            content = Content(fd, chunk.offset, chunk.size)
            verdicts[number] = self._content(content, chunk.digest, name.compression, (Suffix.CHUNK,))
        wrong = tuple(number for number, verdict in verdicts.items() if verdict is Verdict.WRONG)
        if wrong:
            return Finding(item, Verdict.WRONG, f"{len(wrong)} of its chunks have other content", wrong)
        unproven = Verdict.UNPROVEN in verdicts.values()
        return _finding(item, Verdict.UNPROVEN if unproven else Verdict.RIGHT)

    def _list(self, item: Item, fd: int) -> Finding:
        digest = Digest.parse(item.name.removeprefix("lists/"))
        data = b"".join(Content(fd, 0, os.fstat(fd).st_size).blocks())
        return _finding(item, Verdict.RIGHT if digest_of(data, digest.algorithm) == digest else Verdict.WRONG)

    def _image(self, item: Item, fd: int) -> Finding:
        with open(fd, "rb", closefd=False) as file:
            for _ in read_image(file, "it"):
                pass
        missing = [name for name in lists_of_image(self._root, item) if not (self._root / name).exists()]
        if missing:
            raise _Bad(f"it needs {missing[0]}, which is not here")
        return _finding(item, Verdict.RIGHT)

    def _unsized(self, item: Item, fd: int) -> Finding:
        digest, compression = parse_unsized_name(item.name.removeprefix("unsized/"))
        content = Content(fd, 0, os.fstat(fd).st_size)
        return _finding(item, self._content(content, digest, compression, _WHOLE_FILES))

    def _content(self, content: Content, digest: Digest, compression: Compression, kinds: Sequence[Suffix]) -> Verdict:
        verdict = self._prover.judge(content, digest, compression)
        return self._compare(content, digest, compression, kinds) if verdict is Verdict.UNPROVEN else verdict

    def _compare(self, content: Content, digest: Digest, compression: Compression, kinds: Sequence[Suffix]) -> Verdict:
        """UNPROVEN if no server has it."""
        for fetcher in self._elsewhere:
            for kind in kinds:
                name = ObjectName(digest, kind, compression, None, _CONTENT_LIMIT)
                try:
                    theirs = fetcher.fetch(name.path, partial(_hash_of, name))
                except MicaError:
                    continue
                ours = hashlib.sha256()
                for block in content.blocks():
                    ours.update(block)
                return Verdict.RIGHT if ours.digest() == theirs else Verdict.WRONG
        return Verdict.UNPROVEN

    def _chunks(self, name: LocalName) -> Sequence[Chunk]:
        """Raises FileNotFoundError without the chunk list, ValueError if the list does not belong to the name."""
        data = (self._root / list_name(name)).read_bytes()
        if digest_of(data, name.digest.algorithm) != name.digest:
            raise ValueError("its chunk list has other content")
        chunks = parse_chunk_list(data, name.digest.algorithm)
        if chunks[-1].offset + chunks[-1].size != name.size:
            raise ValueError("its chunk list is of a file of another size")
        return chunks

    def _require_size(self, fd: int, size: int) -> None:
        found = os.fstat(fd).st_size
        if found != size:
            raise _Bad(f"it has {found} bytes and not {size}")


def _finding(item: Item, verdict: Verdict) -> Finding:
    reasons = {
        Verdict.RIGHT: "",
        Verdict.WRONG: "it has other content",
        Verdict.UNPROVEN: "it was compressed by a program that is not known here, or has other content",
    }
    return Finding(item, verdict, reasons[verdict])


def _hash_of(name: ObjectName, stream: Readable) -> bytes:
    hasher = hashlib.sha256()
    copy_verified(stream, _HashSink(hasher.update), name)
    return hasher.digest()


class _HashSink:
    def __init__(self, update: Callable[[bytes], None]) -> None:
        self._update = update

    def write(self, data: bytes) -> None:
        self._update(data)


def repair(root: Path, finding: Finding, remover: Remover) -> Taken:
    """Remove a wrong item, also while it is in use. Of a part that is being filled, only the marks of its wrong chunks
    are removed; a part that is wrong in another way stays while it is in use. Raises OSError."""
    item = finding.item
    if item.kind is not Kind.PART:
        return remover.discard(item)
    if not finding.chunks:
        return remover.take(item)
    with owned_fd(os.open(root / item.names[0], os.O_RDWR | os.O_CLOEXEC)) as fd, mmap.mmap(fd, 0) as marks:
        for number in finding.chunks:
            marks[number : number + 1] = b"\0"
    return Taken.FREED
