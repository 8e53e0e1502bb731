"""What the running kernel can do, as `selftest.py` found out once for each start of the machine and kernel."""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mica.errors import UserError
from mica.files import mapped_os_errors, replace_file
from mica.node.stack import Method

_VERSION = 2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """Each is empty if it works here, otherwise the reason why not."""

    image_from_file: str
    image_by_loop: str
    trigger: str
    ordinary: str

    def reason_against(self, method: Method) -> str:
        """Why a method does not work here; empty if it does."""
        if method is Method.KERNEL:
            return self.image_from_file or self.trigger
        if method is Method.LOOP:
            return self.image_by_loop or self.trigger
        if method is Method.ORDINARY:
            return (self.image_from_file and self.image_by_loop) or self.ordinary
        return ""

    @property
    def best(self) -> Method:
        return next(method for method in Method if not self.reason_against(method))

    def choose(self, wanted: Method | None) -> Method:
        """The wanted method, or the best one. Raises UserError if what is wanted does not work here."""
        if wanted is None:
            return self.best
        reason = self.reason_against(wanted)
        if reason:
            raise UserError(f"This kernel cannot mount by method {wanted.value!r}: {reason}.")
        return wanted


def kernel_facts(cache: Path, kept: Path) -> KernelFacts:
    """What the file `kept` has of an earlier test in this life of the machine, or a new test. It holds for the file
    system of this cache directory. To be called without threads."""
    with mapped_os_errors(f"use the cache directory {cache}"):
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        life = f"{_VERSION} {os.uname().release} {_BOOT_ID.read_text('ascii').strip()} {cache.stat().st_dev}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(kept.read_bytes())
        if values["life"] == life:
            return KernelFacts(**values["facts"])
    # What it tries takes long to load, and is tried once.
    from mica.node.selftest import test_kernel

    facts = test_kernel(cache)
    with mapped_os_errors(f"write {kept}"):
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        document = json.dumps({"life": life, "facts": asdict(facts)})
        replace_file(kept, document.encode("utf-8"), mode=0o600, durable=False)
    return facts
