"""Sizes and ages as people write them. Pure."""

import re

_SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,3}))?([KMGTP]?)(i?B)?")
_AGE = re.compile(r"([0-9]{1,9})([smhdw])")
_UNITS = "KMGTP"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """Bytes of `20G`, `1.5T`, `500MiB`, `4096`: units are powers of 1024; of 1000 in `500MB`, as truncate(1) has it.

    Raises ValueError for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None or (match[4] == "iB" and not match[3]):
        raise ValueError(f"{text!r} is not a size, such as 20G or 500M")
    base = 1000 if match[3] and match[4] == "B" else 1024
    unit = int(base ** (_UNITS.index(match[3]) + 1)) if match[3] else 1
    thousandths = int(match[1]) * 1000 + int(f"{match[2] or '':0<3}")
    return thousandths * unit // 1000


def format_size(size_bytes: int) -> str:
    """For people: `512 B`, `20.0 GiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    power = 1
    while power < len(_UNITS) and size_bytes / 1024**power >= 1023.95:
        power += 1
    return f"{size_bytes / 1024**power:.1f} {_UNITS[power - 1]}iB"


def parse_age(text: str) -> int:
    """Seconds of `90s`, `15m`, `36h`, `7d`, `2w`. Raises ValueError for anything else."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an age, such as 36h or 7d")
    return int(match[1]) * _SECONDS[match[2]]
