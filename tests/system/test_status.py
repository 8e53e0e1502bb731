"""`mica status` and the attributes it asks for, on real mounts; servers that are gone, hang, or are not ours."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli import mica
from tests.support.noise import noise
from tests.support.repositories import Repository, ingest, make_repository
from tests.support.tars import END, member
from tests.support.tools import missing, need, need_fuse
from tests.support.waiting import eventually
from tests.system.test_fuse_mount import wait_until

from mica import linux
from mica.mount.statusreport import State, is_repository, report_mounts
from mica.mountinfo import Mount, mount_of, read_mounts
from mica.publish.rules import ObjectRules

pytestmark = pytest.mark.system
FQRN = "small.example.org"
MIDDLE = noise(200_000)
# A program, so that it can be run too; what follows it is nobody's business.
CHUNKED = Path("/bin/true").read_bytes() + noise(600_000)
ARCHIVE = (
    member(b"small", b"small")
    + member(b"large/.cvmfscatalog")
    + member(b"large/file", MIDDLE)
    + member(b"large/chunked", CHUNKED, mode=b"0000755\0")
    + END
)


class Node:
    """A state directory with one repository, mounted by the real command."""

    def __init__(self, place: Path) -> None:
        self.state = place / "node"
        self.target = place / "mnt"
        self.target.mkdir()
        self.repository: Repository = make_repository(place / "repository", rules=ObjectRules())
        ingest(self.repository, ARCHIVE)

    @property
    def options(self) -> list[str]:
        key = self.repository.keys / f"{FQRN}.pub"
        return ["--url", str(self.repository.storage), "--key", str(key)]

    def mount(self, *options: str) -> None:
        done = mica(self.state, "mount", FQRN, self.target, *self.options, *options)
        assert done.code == 0, done.stderr

    def facts(self) -> dict[str, Any]:
        done = mica(self.state, "status", self.target, "--local", "--json")
        assert done.code == 0, done.stderr
        (facts,) = json.loads(done.stdout)["repositories"]
        assert facts["directory"] == str(self.target)
        assert facts["repository"] == FQRN
        return dict(facts)

    def attribute(self, name: str, path: str = "") -> str:
        return os.getxattr(self.target / path, f"user.{name}").decode()

    def signal_server(self, number: signal.Signals) -> int:
        pid = int(self.attribute("pid"))
        os.kill(pid, number)
        return pid


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    need_fuse()
    node = Node(tmp_path)
    yield node
    while linux.mounted_device(node.target):
        linux.umount2(node.target, linux.MNT_DETACH)


def kill_server(node: Node) -> None:
    pid = node.signal_server(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_mount_tells_how_it_does(node: Node) -> None:
    node.mount()
    facts = node.facts()
    assert (facts["state"], facts["fqrn"], facts["revision"], facts["follows"]) == ("serving", FQRN, 2, True)
    assert 0 < facts["passthrough_from_bytes"] <= len(MIDDLE)
    assert facts["cache"] == str(node.state / "cache")
    assert facts["local"] == {
        "files": 4, "local_files": 0, "size_bytes": 5 + len(MIDDLE) + len(CHUNKED), "local_bytes": 0,
        "catalogs": 2, "unseen_catalogs": 1,
    }  # fmt: skip
    before = facts["objects_fetched"]
    assert (node.target / "small").read_bytes() == b"small"
    facts = node.facts()
    assert (facts["local"]["local_files"], facts["local"]["local_bytes"]) == (1, 5)
    assert (facts["files_opened"], facts["objects_fetched"]) == (1, before + 1)
    counted, quick = (shown(node, *options) for options in (("--local",), ()))
    assert counted["local"].endswith("1 of 4 files; 1 of 2 catalogs not looked into")
    assert quick["local"] == "not counted; --local counts"
    for lines in (counted, quick):
        assert lines["state"].startswith("serving revision 2 ")
        assert lines["opened"] == "1 files"


def shown(node: Node, *options: str) -> dict[str, str]:
    """What is said to people of the mount."""
    done = mica(node.state, "status", *options)
    assert done.code == 0, done.stderr
    (block,) = (text for text in done.stdout.split("\n\n") if text.startswith(f"Repository {FQRN} at {node.target}\n"))
    pairs = (line.split(maxsplit=1) for line in block.splitlines()[1:])
    return dict(pairs)  # type: ignore[arg-type]


def test_what_nobody_asked_for_is_not_counted(node: Node) -> None:
    node.mount()
    (node.state / "cache").rename(node.state / "elsewhere")
    (facts,) = json.loads(mica(node.state, "status", node.target, "--json").stdout)["repositories"]
    assert (facts["local"], facts["local_unknown"]) == (None, "not counted; --local counts")
    assert facts["state"] == "serving"


def test_asking_fetches_nothing(node: Node) -> None:
    node.mount()
    before = node.facts()
    for _ in range(3):
        after = node.facts()
    assert after | {"uptime_s": 0} == before | {"uptime_s": 0}


def need_passthrough(node: Node) -> None:
    refusal = node.facts()["passthrough_refusal"]
    if refusal:
        missing(f"files cannot pass through here: {refusal}")


def passes_through(node: Node, path: str) -> bool:
    with open(node.target / path, "rb"):
        return node.facts()["passthrough_open_files"] == 1


def test_a_file_that_passes_through_is_counted_while_it_is_open(node: Node) -> None:
    node.mount()
    need_passthrough(node)
    assert passes_through(node, "large/file")
    assert (node.target / "large/file").read_bytes() == MIDDLE
    wait_until(lambda: node.facts()["passthrough_open_files"] == 0)


def test_a_file_in_chunks_passes_through_once_it_is_whole(node: Node) -> None:
    node.mount()
    need_passthrough(node)
    with open(node.target / "large/chunked", "rb", buffering=0) as file:
        assert file.read() == CHUNKED
        # It was opened when it was not: as long as it is open, all opens are of that kind.
        assert not passes_through(node, "large/chunked")
    wait_until(lambda: passes_through(node, "large/chunked"))
    assert (node.target / "large/chunked").read_bytes() == CHUNKED
    with open(node.target / "large/chunked", "rb"):
        subprocess.run([node.target / "large/chunked"], check=True)
    assert node.facts()["io_errors"] == 0


def test_passthrough_can_be_forbidden(node: Node) -> None:
    node.mount("--no-passthrough")
    with open(node.target / "large/file", "rb") as file:
        assert file.read() == MIDDLE
        facts = node.facts()
    assert (facts["passthrough_open_files"], facts["passthrough_from_bytes"]) == (0, 0)
    assert facts["passthrough_refusal"]
    assert facts["passthrough_refusal"] in mica(node.state, "status", node.target).stdout


def test_attributes_through_the_kernel(node: Node, tmp_path: Path) -> None:
    need("cp", "coreutils")
    node.mount("--no-follow")
    assert node.attribute("fqrn") == node.attribute("fqrn", "large/file") == FQRN
    assert node.attribute("expires") == "never (fixed root catalog)"
    assert node.attribute("chunks", "large/file") == "1"
    assert int(node.attribute("chunks", "large/chunked")) > 1
    assert (node.target / "small").read_bytes() == b"small"
    assert node.attribute("hash", "small") == node.attribute("lhash", "small")
    assert node.attribute("mica.local", "small") == "5 of 5"
    with pytest.raises(OSError, match="No data"):
        node.attribute("none")
    assert {"user.fqrn", "user.revision", "user.mica.status"} <= set(os.listxattr(node.target))
    subprocess.run(["cp", "-a", "--preserve=all", f"{node.target}/.", tmp_path / "copy"], check=True)
    for path in (tmp_path / "copy/small", tmp_path / "copy/large", tmp_path / "copy/large/file"):
        assert os.listxattr(path) == []


def test_listings_of_attributes_as_the_stock_client_has_them(node: Node) -> None:
    assert mica(node.state, "mount", FQRN, node.target, "--magic", "some").code == 2
    node.mount("--magic", "never")
    assert os.listxattr(node.target) == []
    assert node.attribute("fqrn") == FQRN


def test_a_new_revision_shows(node: Node) -> None:
    settings = node.repository.state / "repositories" / FQRN / "repository.toml"
    settings.write_text(settings.read_text().replace("ttl_s = 240", "ttl_s = 1"))
    ingest(node.repository, member(b"first", b"") + END)
    node.mount()
    first = node.attribute("root_hash")
    assert node.attribute("expires") == "0"
    ingest(node.repository, member(b"new", b"new") + END)
    wait_until(lambda: node.attribute("root_hash") != first)
    assert int(node.attribute("revision")) == node.facts()["revision"] > 2


def test_a_path_inside_and_one_outside(node: Node) -> None:
    node.mount()
    inside = mica(node.state, "status", node.target / "large", "--json")
    assert json.loads(inside.stdout)["repositories"][0]["repository"] == FQRN
    outside = mica(node.state, "status", node.state)
    assert (outside.code, outside.sentence) == (1, f"{node.state} is in no mounted repository.")
    missing = mica(node.state, "status", node.target / "missing")
    assert missing.code == 1
    assert str(node.target / "missing") in missing.sentence


# What Python needs is loaded while root, in whose home it may be.
LOOK_AS_NOBODY = """
import encodings.ascii, json, os, sys
from pathlib import Path
import mica.fetch.localshare
from mica import linux
from mica.cli import mountstatus as mounts
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
linux.prctl(4, 1)  # PR_SET_DUMPABLE: its own /proc/self again
print(json.dumps(mounts.repository_mounts(Path(sys.argv[1]), count=True)[0].facts))
"""


def test_others_may_look_but_not_into_the_cache(node: Node, tmp_path: Path) -> None:
    node.mount()
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o011)
    command = [sys.executable, "-c", LOOK_AS_NOBODY, str(node.target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (facts,) = json.loads(done.stdout)
    assert (facts["state"], facts["local"]) == ("serving", None)
    assert facts["local_unknown"] == "the cache belongs to another user"


def test_a_cache_that_is_gone_is_not_made(node: Node) -> None:
    node.mount()
    (node.state / "cache").rename(node.state / "elsewhere")
    assert node.facts()["local_unknown"] == "the cache is gone"
    assert not (node.state / "cache").exists()


def test_a_server_that_was_killed(node: Node) -> None:
    node.mount()
    assert (node.target / "small").read_bytes() == b"small"
    kill_server(node)
    assert node.facts() == {"repository": FQRN, "directory": str(node.target), "state": "gone"}
    assert f"its server is gone: mica umount {node.target}" in mica(node.state, "status").stdout
    again = mica(node.state, "mount", FQRN, node.target, *node.options)
    assert (again.code, again.sentence) == (1, f"{node.target} is a mount whose server is gone.")
    assert f"mica umount {node.target}" in again.stderr
    done = mica(node.state, "umount", node.target)
    assert (done.code, done.stderr) == (0, "")
    assert linux.mounted_device(node.target) is None
    node.mount()
    assert (node.target / "small").read_bytes() == b"small"


def test_a_server_that_was_killed_with_files_open(node: Node) -> None:
    """What passes through reads on; unmounting needs --lazy as with any other mount that is in use."""
    node.mount()
    need_passthrough(node)
    with open(node.target / "large/file", "rb", buffering=0) as file:
        kill_server(node)
        busy = mica(node.state, "umount", node.target)
        assert busy.code == 1
        assert "--lazy" in busy.stderr
        assert mica(node.state, "umount", "--lazy", node.target).code == 0
        assert file.read() == MIDDLE
    assert linux.mounted_device(node.target) is None


def test_a_server_that_hangs_holds_nobody_up(node: Node) -> None:
    node.mount()
    pid = node.signal_server(signal.SIGSTOP)
    try:
        assert eventually(lambda: set(states_of(pid)) == {"T"}), "a thread stops when it notices the signal"
        (mount,) = our_mounts(node.target)
        (report,) = report_mounts([mount], patience_s=0.2)
        assert (report.state, report.status) == (State.SILENT, None)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert node.facts()["state"] == "serving"


def states_of(pid: int) -> list[str]:
    """Of all threads (proc_pid_stat(5))."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [text.rpartition(")")[2].split()[0] for text in stats]


def our_mounts(target: Path) -> list[Mount]:
    return [mount for mount in read_mounts() if is_repository(mount) and mount.target == os.fsencode(target)]


def test_what_lies_under_another_mount_is_not_asked(node: Node) -> None:
    node.mount()
    linux.mount("other", node.target, "tmpfs")
    try:
        (report,) = report_mounts(our_mounts(node.target))
        assert report.state is State.COVERED
        found = mount_of(node.target)
        assert found is not None
        assert found.fstype == b"tmpfs"
    finally:
        linux.umount2(node.target)
    assert node.facts()["state"] == "serving"


@contextlib.contextmanager
def unanswered(target: Path, user: int, source: str = f"mica#{FQRN}") -> Iterator[None]:
    """A mount that nobody serves, made for some user: who asks it waits."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        data = f"fd={fd},rootmode=40000,user_id={user},group_id=0,allow_other"
        linux.mount(source, target, "fuse.mica", data=data)
        yield
    finally:
        os.close(fd)
        if linux.mounted_device(target):
            linux.umount2(target, linux.MNT_DETACH)


def test_what_another_user_mounted_is_not_asked(node: Node) -> None:
    with unanswered(node.target, 12345):
        assert node.facts() == {"repository": FQRN, "directory": str(node.target), "state": "foreign"}


def test_a_mount_that_nobody_ever_served_can_be_unmounted(node: Node) -> None:
    with unanswered(node.target, 0):
        done = mica(node.state, "umount", node.target, timeout_s=30)
        assert (done.code, done.stderr) == (0, "")
        assert linux.mounted_device(node.target) is None


def test_other_mounts_of_ours_are_no_repositories(node: Node) -> None:
    with unanswered(node.target, 0, "something"):
        assert our_mounts(node.target) == []
        assert mica(node.state, "status", node.target).code == 1


def test_a_second_mount_on_a_directory_is_refused(node: Node, tmp_path: Path) -> None:
    node.mount()
    (tmp_path / "link").symlink_to(node.target)
    for directory in (node.target, tmp_path / "link"):
        again = mica(node.state, "mount", FQRN, directory, *node.options)
        assert (again.code, again.sentence) == (1, f"The repository {FQRN} is mounted on {directory} already.")
        assert f"mica umount {directory}" in again.stderr
    assert len(our_mounts(node.target)) == 1
    pid = int(node.attribute("pid"))
    assert mica(node.state, "umount", node.target).code == 0
    # Until its server has looked whether the mount is gone it may take a dead one with the same number for it.
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    with unanswered(node.target, 0, "something"):
        again = mica(node.state, "mount", FQRN, node.target, *node.options)
        assert again.code == 1


def test_nothing_mounted(tmp_path: Path) -> None:
    need("unshare", "util-linux")
    program = 'umount -a -t fuse.mica -l; exec "$@"'
    command = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        program,
        "sh",
        sys.executable,
        "-m",
        "mica",
        "status",
        "--node",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Nothing is mounted, and no container runs.\n"), done.stderr
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    sections = json.loads(done.stdout)
    assert sections["repositories"] == []
    assert not any(sections.values())
