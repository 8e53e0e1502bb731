"""Platforms of images: `linux/amd64`, `linux/arm/v7`; which of several images suits a machine. Pure; any thread."""

import platform as machine
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mica.errors import UserError

_PART = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armv8l": "arm64",
    "armv7l": "arm",
    "armhf": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
# What a name without a variant means: runs on every amd64 (v1) and arm64 (v8); 32-bit ARM names mean v7.
_DEFAULT_VARIANTS = {"amd64": 1, "arm64": 8, "arm": 7}


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and a processor, named as Go names them; no variant is the usual one."""

    os: str
    architecture: str
    variant: str = ""

    @property
    def text(self) -> str:
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")

    def __str__(self) -> str:
        return self.text

    @property
    def level(self) -> int:
        """The variant as a number that grows with what the processor can do."""
        digits = self.variant.removeprefix("v")
        # isdecimal alone would let other scripts' digits through, and length bounds the conversion.
        if digits.isascii() and digits.isdecimal() and len(digits) < 4:
            return int(digits)
        return _DEFAULT_VARIANTS.get(self.architecture, 0)

    def runs(self, other: "Platform") -> bool:
        """Whether an image made for the other platform runs here."""
        same = (self.os, self.architecture) == (other.os, other.architecture)
        return same and other.level <= self.level

    @classmethod
    def parse(cls, text: str) -> "Platform":
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or any(_PART.fullmatch(part) is None for part in parts):
            raise UserError(f"{text[:100]!r} is not a platform.", hint="For example linux/amd64 or linux/arm/v7")
        os_name, architecture, *variant = (part.lower() for part in parts)
        return cls(os_name, _ARCHITECTURES.get(architecture, architecture), *variant)

    @classmethod
    def here(cls) -> "Platform":
        """Linux on the processor that this program runs on."""
        name = machine.machine().lower()
        return cls("linux", _ARCHITECTURES.get(name, name))


def best_platform(wanted: Platform, offered: Iterable[Platform]) -> Platform | None:
    """The most capable of those that run; None where none does."""
    return max((one for one in offered if wanted.runs(one)), key=lambda one: one.level, default=None)
