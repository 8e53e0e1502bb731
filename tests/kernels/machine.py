"""A virtual machine with another kernel and this machine's own root directory (stage1.sh, stage2.sh)."""

import contextlib
import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.package import BUILD, ROOT, Kernel, modules_in_order

_HERE = Path(__file__).parent
# What the first stage needs before it can load anything else.
_MODULES = ("virtio_pci", "virtio_blk", "9p", "9pnet_virtio", "overlay", "crc32c_generic", "ext4")
_MARK = "mica-kernels: started"
_PROBE_S = 20.0


@dataclass(frozen=True, slots=True)
class Machine:
    """`disk_bytes` is the size of a sparse file that is gone afterwards."""

    kernel: Kernel
    accelerator: str
    processors: int = 2
    memory_mb: int = 4096
    disk_bytes: int = 40 << 30

    def run(self, command: str) -> int:
        """Run a shell script in the checkout; its output goes where ours goes. Returns its exit code."""
        with _work_directory() as work:
            (work / "command").write_text(command)
            disk = work / "disk"
            with disk.open("wb") as file:
                file.truncate(self.disk_bytes)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", disk], check=True)
            result, console = work / "result", BUILD / "console.log"
            initramfs = _initramfs(self.kernel, work, is_probe=False)
            subprocess.run(
                [*_qemu(self.kernel, initramfs, self.accelerator, self.processors, self.memory_mb),
                 "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
                 "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
                 "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe,discard=unmap",
                 "-nic", "user,model=virtio-net-pci",
                 "-serial", f"file:{console}", "-serial", "stdio", "-serial", f"file:{result}"],
                check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            text = result.read_text().strip()
            if not text:
                raise SystemExit(f"The virtual machine ended before the command; see {console.relative_to(ROOT)}.")
            return int(text)


def best_accelerator(kernel: Kernel) -> str:
    """KVM where this very kernel starts with it, otherwise emulation: some hosts have a /dev/kvm that starts nothing
    but kernels made for them."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with _work_directory() as work:
        command = [*_qemu(kernel, _initramfs(kernel, work, is_probe=True), "kvm", 1, 512), "-serial", "stdio"]
        try:
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PROBE_S)
        except subprocess.TimeoutExpired:
            return "tcg"
        return "kvm" if _MARK.encode() in done.stdout else "tcg"


@contextlib.contextmanager
def _work_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="run-", dir=BUILD) as work:
        yield Path(work)


def _qemu(kernel: Kernel, initramfs: Path, accelerator: str, processors: int, memory_mb: int) -> list[str]:
    how = "kvm" if accelerator == "kvm" else "tcg,thread=multi"
    return [
        "qemu-system-x86_64", "-accel", how, "-cpu", "max", "-smp", str(processors), "-m", str(memory_mb),
        "-nodefaults", "-display", "none", "-no-reboot", "-kernel", os.fspath(kernel.image),
        "-initrd", os.fspath(initramfs), "-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off",
    ]  # fmt: skip


def _initramfs(kernel: Kernel, work: Path, *, is_probe: bool) -> Path:
    """An archive of busybox, the first stage and its modules."""
    root = work / "initramfs"
    for name in ("bin", "modules"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin" / "busybox")
    shutil.copy(_HERE / "stage1.sh", root / "init")
    (root / "init").chmod(0o755)
    order = [] if is_probe else _copy_modules(kernel, root / "modules")
    (root / "modules" / "order").write_text("".join(f"{name}\n" for name in order))
    values = {"checkout": ROOT, "modules": kernel.modules.parent, "work": work, "mark": _MARK,
              "is_probe": "yes" if is_probe else ""}  # fmt: skip
    (root / "parameters").write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))
    archive = work / "initramfs.cpio"
    subprocess.run(["bsdtar", "--format=newc", "--uid=0", "--gid=0", "-cf", archive, "-C", root, "."], check=True)
    return archive


def _copy_modules(kernel: Kernel, target: Path) -> Sequence[str]:
    lists = [(kernel.modules / f"modules.{name}").read_text() for name in ("dep", "builtin")]
    names = []
    for path in modules_in_order(lists[0], lists[1], _MODULES):
        data = (kernel.modules / path).read_bytes()
        name = Path(path).name
        if name.endswith(".xz"):
            data, name = lzma.decompress(data), name.removesuffix(".xz")
        (target / name).write_bytes(data)
        names.append(name)
    return names
