"""Small loops over a tree, run as a program of their own that prints how many seconds the loop alone took.

    python benchmarks/loops.py LOOP DIRECTORY COUNT

Trees are those of `support.make_tree` with COUNT files; `seq`, `rand` and `mmap` read `DIRECTORY/large`.
"""

import mmap
import os
import random
import sys
import time
from collections.abc import Callable

_BLOCK = 1 << 20
_PAGE = 4096


def find(directory: str, _: list[str]) -> None:
    """Every name with its attributes, as `find -ls` wants them."""
    waiting = [directory]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def stat(_: str, paths: list[str]) -> None:
    for path in paths:
        os.stat(path)


def open_read(_: str, paths: list[str]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        while os.read(fd, _BLOCK):
            pass
        os.close(fd)


def seq(directory: str, _: list[str]) -> None:
    fd = os.open(f"{directory}/large", os.O_RDONLY)
    block = bytearray(_BLOCK)
    while os.readv(fd, (block,)):
        pass
    os.close(fd)


def rand(directory: str, paths: list[str]) -> None:
    """As many reads as there are paths."""
    fd = os.open(f"{directory}/large", os.O_RDONLY)
    pages = os.fstat(fd).st_size // _PAGE
    chooser = random.Random(1)
    for place in [chooser.randrange(pages) for _ in paths]:
        os.pread(fd, _PAGE, place * _PAGE)
    os.close(fd)


def map_pages(directory: str, _: list[str]) -> None:
    """One byte of every page."""
    with open(f"{directory}/large", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        content[::_PAGE]


LOOPS: dict[str, Callable[[str, list[str]], None]] = {
    "find": find, "stat": stat, "open_read": open_read, "seq": seq, "rand": rand, "mmap": map_pages,
}  # fmt: skip


def main() -> None:
    name, directory, count = sys.argv[1:]
    paths = [f"{directory}/d{number // 100:05d}/f{number:07d}" for number in range(int(count))]
    loop = LOOPS[name]
    start = time.perf_counter()
    loop(directory, paths)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
