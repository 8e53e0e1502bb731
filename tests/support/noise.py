"""Bytes that do not compress. They are the same in every run, so that a failure that depends on them comes back."""

import random

_dice = random.Random(2017)


def noise(size: int) -> bytes:
    """`size` bytes; the next call gives others."""
    return _dice.randbytes(size)


def begin(name: str) -> None:
    """What follows depends on `name` alone: a test gets the same bytes whatever ran before it."""
    _dice.seed(name)
