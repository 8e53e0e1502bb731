"""A packaged kernel of Debian, unpacked below build/ and not installed."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from demo.packages import apt_options, mirror

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "kernels"
SUITE = "bookworm"


@dataclass(frozen=True, slots=True)
class Kernel:
    """`modules` is the directory of one release, with `modules.dep`."""

    image: Path
    modules: Path

    @property
    def release(self) -> str:
        return self.modules.name


def unpacked_kernel(wanted: str) -> Kernel:
    """The kernel of a package of Debian 12 by name, or of a package file (*.deb). Unpacked once."""
    file = Path(wanted) if wanted.endswith(".deb") else None
    target = BUILD / (file.stem if file else wanted)
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        if file:
            subprocess.run(["dpkg-deb", "--extract", file, unfinished], check=True)
        else:
            _unpack_from_archive(wanted, unfinished)
        subprocess.run(["depmod", "-b", unfinished, _release(unfinished)], check=True)
        unfinished.rename(target)
    release = _release(target)
    return Kernel(target / "boot" / f"vmlinuz-{release}", target / "lib" / "modules" / release)


def _unpack_from_archive(package: str, target: Path) -> None:
    """With what it depends on, for the package of that name is an empty one that depends on the newest kernel."""
    options = BUILD / ".apt.conf"
    options.write_text(apt_options())
    source = mirror()
    subprocess.run(
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--format=directory", f"--aptopt={options}",
         '--aptopt=APT::Install-Recommends "false"', f"--include={package}", SUITE, target,
         *([f"deb {source} {SUITE} main"] if source else [])],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _release(unpacked: Path) -> str:
    releases = [path.name for path in (unpacked / "lib" / "modules").iterdir()]
    if len(releases) != 1:
        raise SystemExit(f"{unpacked} has the modules of {len(releases)} kernels, and not of one.")
    return releases[0]


def modules_in_order(dependencies: str, built_in: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of the wanted modules and of what they need, in the order of loading, from the text of `modules.dep`.

    Those that `modules.builtin` lists need no loading. Raises SystemExit for one that the kernel does not have.
    """
    needs = {}
    for line in dependencies.splitlines():
        path, _, others = line.partition(":")
        needs[_module_name(path)] = (path, others.split())
    fixed = {_module_name(path) for path in built_in.splitlines()}
    order: list[str] = []
    for name in wanted:
        if name in fixed:
            continue
        if name not in needs:
            raise SystemExit(f"The kernel has no module {name}.")
        path, others = needs[name]
        order += [one for one in (*reversed(others), path) if one not in order]
    return order


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")
