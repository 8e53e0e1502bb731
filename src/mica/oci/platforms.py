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
# Meaning of a name without a variant: amd64 is v1 and arm64 is v8, which every such processor runs; arm is v7.
_DEFAULT_VARIANTS = {"amd64": 1, "arm64": 8, "arm": 7}


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and a processor with Go's names; without a variant it is the usual one.

    Configurations of hand-made images name neither, or no architecture: they do not state a platform.
    """

    os: str
    architecture: str
    variant: str = ""

    @property
    def text(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part) or "no platform"

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

    @property
    def stated(self) -> "Platform | None":
        """The platform itself if there is one."""
        return self if self.os and self.architecture else None

    def suits(self, wanted: "Platform") -> bool:
        """Whether an image with this in its configuration is one for a platform. A part that it leaves out fits any."""
        pairs = ((self.os, wanted.os), (self.architecture, wanted.architecture))
        return all(not own or own == other for own, other in pairs)

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
    """The most capable platform of those that run here; None if none does."""
    return max((one for one in offered if wanted.runs(one)), key=lambda one: one.level, default=None)
