"""`make clean-system`: a command in a fresh clone, in a Debian that has nothing else (docs: tests/README.md).

The system is made by mmdebstrap with what Debian's installer always installs, make, and Debian's own Python. It has its
own processes and mounts, and the machine's kernel, devices and network. Each run makes it again and removes it.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from demo.packages import apt_options, mirror, package_sources

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "clean-system"
_CLONE = "root/mica"
_PACKAGES = ("ca-certificates", "git", "make", "python3")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON = ("CI", "TERM", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# Process 1 of the system is this shell: whoever loses its parent belongs to it.
_ENTER = """
set -e
root=$1 tmp=$2 seen=$3 command=$4 clone=$5
mount --make-rprivate /
mount --bind "$root" "$root"
for place in /sys /dev; do mount --rbind "$place" "$root$place"; done
mount -t proc none "$root/proc"
mount -t tmpfs -o mode=0755 none "$root/run"
[ "$tmp" = disk ] || mount -t tmpfs -o mode=1777,size=50% none "$root/tmp"
for place in $seen; do
  mkdir -p "$root$place"; mount --bind "$place" "$root$place"; mount -o remount,bind,ro "$root$place"
done
cd "$root"
pivot_root . .
umount --lazy .
# As systemd does: engines count on it.
mount --make-rshared /
cd "/$clone"
set +e
sh -c "$command"
exit "$?"
"""


def main() -> int:
    """Make the system, run the command in it and remove it; the command's exit code is ours."""
    parser = argparse.ArgumentParser(prog="make clean-system")
    parser.add_argument("--suite", default="bookworm", help="which Debian")
    parser.add_argument("--tmp", choices=("disk", "tmpfs"), default="disk", help="where /tmp lies")
    parser.add_argument("--see", default="", help="directories of this machine that are there too, read-only")
    parser.add_argument("command", help="a shell script, run in the clone as root")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("make clean-system needs root: it mounts and runs containers in the system.")
    system = BUILD / f"{given.suite}-{given.tmp}"
    log = system.with_suffix(".log")
    _remove(system)
    _make(system, given.suite)
    try:
        start = time.monotonic()
        code = _run(system, log, given.tmp, given.see, given.command)
        took_s = time.monotonic() - start
        print(f"Debian {given.suite}, /tmp on {given.tmp}: exit code {code} after {took_s:.0f} s ({log})")
        return code
    finally:
        _remove(system)


def _make(system: Path, suite: str) -> None:
    system.parent.mkdir(parents=True, exist_ok=True)
    options = system.with_suffix(".apt.conf")
    options.write_text(apt_options())
    archive = mirror()
    sources = package_sources(suite) or (f"deb {archive} {suite} main\n" if archive else "")
    command = [
        "mmdebstrap", "--quiet", "--mode=root", "--variant=important", "--format=directory", f"--aptopt={options}",
        "--dpkgopt=force-unsafe-io", f"--include={','.join(_PACKAGES)}", suite, str(system), *("-" if sources else ""),
    ]  # fmt: skip
    subprocess.run(command, input=sources, text=True, check=True)
    clone = ["git", "clone", "--quiet", "--no-local", f"file://{ROOT}", str(system / _CLONE)]
    subprocess.run(clone, check=True)


def _run(system: Path, log: Path, tmp: str, seen: str, command: str) -> int:
    apart = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    passed_on = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("PIP_")}
    environment = {"HOME": "/root", "PATH": _PATH, "LANG": "C.UTF-8", **passed_on}
    whole = [*apart, "sh", "-c", _ENTER, "sh", str(system), tmp, " ".join(shlex.split(seen)), command, _CLONE]
    with log.open("wb") as file, subprocess.Popen(
        whole, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
    return process.returncode


def _remove(system: Path) -> None:
    """What is mounted in it is gone with its mount namespace."""
    if system.exists():
        shutil.rmtree(system)


if __name__ == "__main__":
    sys.exit(main())
