"""The self-test's findings about the kernel, kept until the machine starts again."""

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from mica.dataplane.kernelfacts import KernelFacts
from mica.files import mapped_os_errors, replace_file

_VERSION = 3
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def kernel_facts(cache: Path, kept: Path) -> KernelFacts:
    """The findings in the file `kept` if they are from this start of the machine, else those of a new test. They hold
    for the file system of this cache directory. To be called without threads."""
    with mapped_os_errors(f"use the cache directory {cache}"):
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        life = f"{_VERSION} {os.uname().release} {_BOOT_ID.read_text('ascii').strip()} {cache.stat().st_dev}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(kept.read_bytes())
        if values["life"] == life:
            return KernelFacts(**values["facts"])
    # The modules that the test tries take long to load, and the test runs once.
    from mica.dataplane.kerneltest import test_kernel

    facts = test_kernel(cache)
    with mapped_os_errors(f"write {kept}"):
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        document = json.dumps({"life": life, "facts": asdict(facts)})
        replace_file(kept, document.encode("utf-8"), mode=0o600, durable=False)
    return facts
