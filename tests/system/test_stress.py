"""Programs made to break file systems, on every way to mount an image: fio with checksums, stress-ng's stressors.

Bounded by operations, not by time, and started from inside a directory that comes from the image.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.support.disks import on_disk
from tests.support.mountpaths import PATHS, MountPath
from tests.support.publishedimages import PublishedImage, publish_layers
from tests.support.tools import need, need_fuse

pytestmark = pytest.mark.system
VERIFIED: Final = "verified"
# Those that work by names, attributes, locks and data of files, with how often. Not: link and symlink farms and chdir
# (thousands of names each time), io and iomix (sync the whole machine), copy-file (128 MB at least).
STRESSORS: Final = {
    "access": 20, "chmod": 50, "chown": 50, "dentry": 300, "dir": 100, "dirmany": 100, "dnotify": 20,
    "fallocate": 20, "fcntl": 50, "filename": 20, "flock": 200, "fsize": 5, "fstat": 50, "getdent": 50, "handle": 20,
    "hdd": 20, "lease": 50, "link": 1, "locka": 100, "lockf": 100, "lockofd": 100, "mknod": 20, "mmap": 1,
    "readahead": 100, "rename": 300, "revio": 50, "seek": 200, "sendfile": 50, "splice": 50, "touch": 100, "utime": 100,
    "xattr": 20,
}  # fmt: skip
SIZES: Final = (
    "--dentries", "200", "--fallocate-bytes", "4m", "--hdd-bytes", "4m", "--mmap-bytes", "1m", "--mmap-file",
    "--readahead-bytes", "4m", "--seek-size", "4m", "--sendfile-size", "64k",
)  # fmt: skip


def fio(directory: Path, *options: str) -> dict:
    """Run one kind of job, whose blocks carry checksums of their own. Fails where one is wrong."""
    program = need("fio", "fio")
    command = [
        program, "--name=job", "--size=4m", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
        "--fallocate=none", "--output-format=json", *options,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = json.loads(done.stdout)["jobs"]
    assert job["error"] == 0
    return job


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> PublishedImage:
    need_fuse()
    place = tmp_path_factory.mktemp("stress")
    layer = place / "layer"
    layer.mkdir()
    fio(layer, f"--filename={VERIFIED}", "--rw=write", "--do_verify=0")
    return publish_layers(place, [layer])


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.name)
def mounted(
    request: pytest.FixtureRequest, image: PublishedImage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    path: MountPath = request.param
    with (
        on_disk(tmp_path_factory.mktemp(path.name)) as place,
        path.open(image, place / "mount", cache=place / "cache") as root,
    ):
        yield root


def test_fio_finds_its_checksums(mounted: Path) -> None:
    """In a file of the image; the same while it is being overwritten; in new files of two processes."""
    for engine in ("psync", "mmap"):
        read = fio(mounted, f"--filename={VERIFIED}", "--rw=randread", f"--ioengine={engine}")
        assert read["read"]["io_bytes"] == 4 << 20
    written = fio(mounted, f"--filename={VERIFIED}", "--rw=randrw", "--verify_backlog=16", "--ioengine=psync")
    assert written["write"]["io_bytes"] > 1 << 20
    new = fio(mounted, "--rw=randwrite", "--numjobs=2", "--group_reporting", "--ioengine=mmap")
    assert new["write"]["io_bytes"] == 8 << 20


def test_stress_ng_finds_nothing(mounted: Path, tmp_path: Path) -> None:
    program = need("stress-ng", "stress-ng")
    counts = [word for name, count in STRESSORS.items() for word in (f"--{name}", "1", f"--{name}-ops", str(count))]
    command = [
        program, "--temp-path", ".", "--verify", "--timeout", "60s", "--metrics", "--yaml", str(tmp_path / "report"),
        *SIZES, *counts,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=mounted, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "report").read_text()
    worked = dict(re.findall(r"stressor: (\S+)\n\s+bogo-ops: (\d+)", report))
    assert worked.keys() == STRESSORS.keys()
    assert [name for name, count in worked.items() if not int(count)] == []
