"""`make kernels`: the system tests in a virtual machine with another kernel (docs: tests/README.md)."""

import argparse
import os
import sys
import time

from tests.kernels.machine import Machine, best_accelerator
from tests.kernels.package import unpacked_kernel


def main() -> int:
    """Unpack the kernel, start it and run the command in it; its exit code is ours."""
    parser = argparse.ArgumentParser(prog="make kernels")
    parser.add_argument("--kernel", required=True, help="a package of Debian 12, or a package file")
    parser.add_argument("--memory", type=int, default=4096, help="MiB")
    parser.add_argument("command", help="a shell script, run in the checkout as root")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("make kernels needs root: the virtual machine reads this machine's files.")
    kernel = unpacked_kernel(given.kernel)
    accelerator = best_accelerator(kernel)
    how = "with KVM" if accelerator == "kvm" else "emulated, because KVM does not start it"
    print(f"Linux {kernel.release}, {how}: {given.command}", flush=True)
    start = time.monotonic()
    code = Machine(kernel, accelerator, memory_mb=given.memory).run(given.command)
    print(f"Linux {kernel.release}: exit code {code} after {time.monotonic() - start:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
