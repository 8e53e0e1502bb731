"""Containers by runc from plain layer directories, and that nothing of them stays behind."""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.tools import need, need_root
from tests.support.waiting import eventually

from mica.run.scratch import sweep

pytestmark = pytest.mark.system

APPLETS = (
    "sh", "cat", "echo", "head", "id", "ls", "mknod", "mkdir", "mount", "rm", "sleep",
    "stty", "test", "touch", "true", "unshare", "wc",
)  # fmt: skip
REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 60


def make_layers(base: Path, busybox: str) -> list[Path]:
    """Three layers, top first: a change, a whiteout and an opaque directory over a base."""
    top, middle, bottom = base / "3", base / "2", base / "1"
    for directory in ("bin", "etc", "data", "opaque", "srv"):
        (bottom / directory).mkdir(parents=True)
    shutil.copy(busybox, bottom / "bin/busybox")
    for applet in APPLETS:
        (bottom / "bin" / applet).symlink_to("busybox")
    (bottom / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
    (bottom / "etc/group").write_text("root:x:0:\nwww:x:34:\naudio:x:29:web\n")
    for name in ("gone", "data/kept", "data/changed", "opaque/below"):
        (bottom / name).write_text("1")
    (middle / "opaque").mkdir(parents=True)
    (middle / "opaque/above").write_text("2")
    os.setxattr(middle / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(middle / "gone", 0o020000, os.makedev(0, 0))
    (top / "data").mkdir(parents=True)
    (top / "data/changed").write_text("3")
    (top / "data/script").write_text("echo never")
    return [top, middle, bottom]


class Runner:
    """Starts requests in processes of their own."""

    def __init__(self, base: Path, busybox: str) -> None:
        self.root = base / "root"
        self.layers = make_layers(base / "layers", busybox)
        self.config: dict[str, Any] = {"Env": ["PATH=/bin", "FROM=image"], "Cmd": ["echo", "from", "image"]}
        self.runc = "runc"

    def arguments(self, *command: str, **options: Any) -> list[str]:
        asked = {
            "layers": [str(layer) for layer in self.layers],
            "config": self.config,
            "options": {"command": command, **options},
            "root": str(self.root),
            "runc": self.runc,
        }
        return [sys.executable, "-W", "error", "-m", "tests.support.run_container", json.dumps(asked)]

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.arguments(*command, **options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=REPOSITORY,
            start_new_session=True,
        )

    def run(self, *command: str, text: str = "", **options: Any) -> tuple[int, str, str]:
        with self.start(*command, **options) as process:
            out, err = process.communicate(text, timeout=TIMEOUT_S)
            return process.returncode, out, err

    def sh(self, script: str, **options: Any) -> str:
        code, out, err = self.run("sh", "-c", script, **options)
        assert (code, err) == (0, "")
        return out


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": f"{REPOSITORY}/src:{REPOSITORY}"}


def mounts_below(path: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(path) in line]


def unused_cgroups() -> set[str]:
    """Those of containers that have no process; tests that run beside this one have containers too."""
    found = (path for pattern in ("mica-*", "*/mica-*") for path in Path("/sys/fs/cgroup").glob(pattern))
    return {str(path) for path in found if not any(_processes_of(path))}


def _processes_of(cgroup: Path) -> Iterator[str]:
    for path in cgroup.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            yield path.read_text()


def processes_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in command:
                found.append(f"{path.parent.name}: {command}")
    return found


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    need_root()
    need("runc", "runc")
    before = unused_cgroups()
    yield Runner(tmp_path, need("busybox", "busybox-static"))
    assert mounts_below(tmp_path) == []
    assert processes_with(str(tmp_path)) == []
    assert [path.name for path in tmp_path.glob("root/*")] in ([], [".lock"])
    assert eventually(lambda: unused_cgroups() <= before)


def read_until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout
    line = process.stdout.readline()
    assert word in line, process.stderr.read() if process.stderr else ""


def test_the_images_own_command(runner: Runner) -> None:
    assert runner.run() == (0, "from image\n", "")


def test_layers_are_merged(runner: Runner) -> None:
    assert runner.sh("cd /; cat data/changed data/kept; echo; ls opaque; test -e gone || echo hidden") == (
        "31\nabove\nhidden\n"
    )


@pytest.mark.parametrize("code", [0, 1, 3, 125, 126, 127, 255])
def test_exit_codes_pass(runner: Runner, code: int) -> None:
    assert runner.run("sh", "-c", f"echo out; echo err >&2; exit {code}") == (code, "out\n", "err\n")


def test_death_by_signal_is_128_more(runner: Runner) -> None:
    with runner.start("sh", "-c", "echo up; exec sleep 603") as process:
        read_until(process, "up")
        assert eventually(lambda: any(": sleep 603" in found for found in processes_with("sleep 603")))
        (found,) = (found for found in processes_with("sleep 603") if ": sleep 603" in found)
        os.kill(int(found.split(":")[0]), signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 137


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("R", 127, "StartError: R: executable file not found in $PATH. []\n"),
        ("/no/such", 127, "StartError: /no/such: no such file or directory. []\n"),
        ("/data/kept", 126, "StartError: /data/kept: permission denied. []\n"),
        ("/data", 126, "StartError: /data: permission denied. []\n"),
    ],
)
def test_a_command_that_cannot_start_is_one_sentence(runner: Runner, command: str, code: int, says: str) -> None:
    assert runner.run(command) == (code, "", says)


def test_a_file_that_is_no_program(runner: Runner) -> None:
    (runner.layers[0] / "data/script").chmod(0o755)
    (runner.layers[0] / "data/script").write_bytes(b"\x7fELF no more")
    code, _, err = runner.run("/data/script")
    assert code != 0
    assert "exec format error" in err


def test_process_settings(runner: Runner) -> None:
    script = "echo $FROM $K $HOME $HOSTNAME; pwd; id"
    out = runner.sh(script, env=["K=v"], user="web", workdir="/made/up", hostname="box")
    assert out == "image v /srv box\n/made/up\nuid=33(web) gid=34(www) groups=29(audio),34(www)\n"
    assert runner.sh("cat /etc/hostname; id -u; id -g", hostname="box", user="7:8") == "box\n7\n8\n"


def test_unknown_user(runner: Runner) -> None:
    code, _, err = runner.run("id", user="nobody")
    assert code == 1
    assert "There is no 'user nobody' in the container's /etc/passwd" in err


def test_standard_input_only_when_asked(runner: Runner) -> None:
    assert runner.sh("cat", text="typed", interactive=True) == "typed"
    assert runner.sh("cat", text="typed") == ""


def test_volumes(runner: Runner, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "in").write_text("host")
    volume = f"{shared}:/mnt/deep"
    assert runner.sh("cat /mnt/deep/in; echo container > /mnt/deep/out", volumes=[volume]) == "host"
    assert (shared / "out").read_text() == "container\n"
    code, _, err = runner.run("touch", "/mnt/deep/x", volumes=[f"{volume}:ro"])
    assert (code, "Read-only file system" in err) == (1, True)
    assert runner.sh("cat /etc/hosts", volumes=[f"{shared}/in:/etc/hosts:ro"]) == "host"


def test_a_missing_volume_is_refused(runner: Runner, tmp_path: Path) -> None:
    code, _, err = runner.run("true", volumes=[f"{tmp_path}/missing:/mnt"])
    assert (code, "does not exist" in err) == (1, True)
    assert not (tmp_path / "missing").exists()


def test_a_volume_cannot_leave_by_a_link_in_the_image(runner: Runner, tmp_path: Path) -> None:
    outside, shared = tmp_path / "outside", tmp_path / "shared"
    outside.mkdir()
    shared.mkdir()
    (runner.layers[0] / "out").symlink_to(outside)
    runner.sh("touch /out/x", volumes=[f"{shared}:/out"])
    assert (shared / "x").exists()
    assert os.listdir(outside) == []


def test_network(runner: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = f":{server.getsockname()[1]:04X} "
        assert port in runner.sh("cat /proc/net/tcp", network="host")
        assert port not in runner.sh("cat /proc/net/tcp", network="none")
    assert runner.sh("ls /sys/class/net", network="none").split() == ["lo"]
    assert "localhost" in runner.sh("cat /etc/hosts", network="none")


def test_host_files_are_copies(runner: Runner) -> None:
    before = Path("/etc/hosts").read_bytes()
    assert runner.sh("cat /etc/hosts; echo 1.2.3.4 evil >> /etc/hosts").encode() == before
    assert Path("/etc/hosts").read_bytes() == before


def test_read_only(runner: Runner) -> None:
    code, _, err = runner.run("touch", "/x", read_only=True)
    assert (code, "Read-only file system" in err) == (1, True)
    assert runner.sh("touch /dev/shm/x; echo done", read_only=True) == "done\n"


def test_writes_are_forgotten_or_kept(runner: Runner, tmp_path: Path) -> None:
    assert runner.sh("echo new > /x; cat /x") == "new\n"
    assert runner.sh("test -e /x || echo forgotten") == "forgotten\n"
    keep = str(tmp_path / "keep")
    runner.sh("echo new > /x; rm /data/kept", keep=keep)
    assert runner.sh("cat /x; ls /data", keep=keep) == "new\nchanged\nscript\n"
    assert (tmp_path / "keep/upper/x").read_text() == "new\n"
    assert sorted(os.listdir(keep)) == [".lock", "upper"]


def test_deep_trees_are_removed(runner: Runner) -> None:
    runner.sh("i=0; while [ $i -lt 1500 ]; do mkdir d; cd d; i=$((i+1)); done; touch f", workdir="/data")


def test_what_a_container_may_not_do(runner: Runner) -> None:
    for command in ("mount -t tmpfs none /srv", "unshare -U true", "touch /proc/sys/x"):
        assert runner.run("sh", "-c", command)[0] != 0, command
    # Where the kernel has it, /dev/null hides it.
    assert runner.run("sh", "-c", "cat /proc/kcore | head -c 1")[1] == ""
    assert runner.sh("cat /proc/1/status | while read k v; do [ $k = CapEff: ] && echo $v; done; true") == (
        "00000000a80425fb\n"  # as in Docker
    )
    assert "a80425fb" not in runner.sh("cat /proc/1/status", user="web").split("CapEff:")[1].split("\n")[0]


@pytest.mark.parametrize("name", ["block", "made"])
def test_no_foreign_device_opens(runner: Runner, name: str) -> None:
    os.mknod(runner.layers[0] / "block", 0o060666, os.stat("/").st_dev)
    code, _, err = runner.run("sh", "-c", f"test -e {name} || mknod {name} c 1 1; cat {name} | wc -c", workdir="/")
    assert "not permitted" in err or "denied" in err, (code, err)


def test_without_cgroups(runner: Runner) -> None:
    """Where a hierarchy is read-only there is no device filter: no device of the image opens, none can be made."""
    os.mknod(runner.layers[0] / "block", 0o060666, os.stat("/").st_dev)
    script = "cat /block | head -c 1; mknod /made c 1 1; echo x > /dev/null; echo done"
    hide = "mount --make-rslave / && for m in $(cut -d' ' -f2 /proc/mounts | grep ^/sys/fs/cgroup/); do "
    hide += "mount -o remount,bind,ro $m; done; if [ -e /sys/fs/cgroup/cgroup.procs ]; then "
    hide += 'mount -o remount,bind,ro /sys/fs/cgroup; fi; exec "$@"'
    arguments = runner.arguments("sh", "-c", script)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, "sh", *arguments],
        env=environment(), cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "/block': Permission denied" in done.stderr
    assert "/made: Operation not permitted" in done.stderr


def test_names(runner: Runner) -> None:
    with runner.start("sh", "-c", "echo up; cat", name="one", interactive=True) as process:
        read_until(process, "up")
        assert sorted(os.listdir(runner.root)) == [".lock", "one"]
        assert mounts_below(runner.root) == []  # the host sees none, even now
        assert os.listdir(runner.root / "one/rootfs") == []
        code, _, err = runner.run("true", name="one")
        assert (code, err) == (4, "TemporaryError: A container named 'one' is running already. []\n")
        assert sweep(runner.root) == []
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0


TRAP = "trap 'echo INT; exit 11' INT; trap 'echo TERM; exit 12' TERM; echo up; while :; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("number", "is_group", "said", "code"),
    [(signal.SIGINT, True, "INT\n", 11), (signal.SIGTERM, False, "TERM\n", 12)],
)
def test_signals_reach_the_program_once(
    runner: Runner, number: signal.Signals, is_group: bool, said: str, code: int
) -> None:
    with runner.start("sh", "-c", TRAP) as process:
        read_until(process, "up")
        assert eventually(lambda: list(runner.root.glob("*/pid")))
        if is_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, out, err) == (code, said, "")


def waits(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether a signal that was sent to a process has still to be taken (proc_pid_status(5))."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (pending,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(pending >> (number - 1) & 1)


def test_the_third_signal_ends_what_ignores_it(runner: Runner) -> None:
    # The shell itself would catch SIGINT until it has become `sleep`.
    with runner.start("sh", "-c", "trap '' INT; echo up; exec sleep 600") as process:
        read_until(process, "up")
        assert eventually(lambda: list(runner.root.glob("*/pid")))
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            assert eventually(lambda: not waits(process, signal.SIGINT))  # equal signals that wait are one
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 137


def test_a_killed_runner_takes_its_container_along(runner: Runner, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with runner.start("sh", "-c", "echo up; (sleep 601 &) ; sleep 602", volumes=[f"{shared}:/v"]) as process:
        read_until(process, "up")
        assert processes_with("sleep 602")
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
    assert eventually(lambda: not processes_with("sleep 601") and not processes_with("sleep 602"))
    assert eventually(lambda: not processes_with(str(tmp_path)))
    assert len(list(runner.root.glob("*/upper"))) == 1
    assert runner.sh("echo next") == "next\n"  # which sweeps


def test_runc_is_missing(runner: Runner) -> None:
    runner.runc = "no-such-runc"
    code, _, err = runner.run("true")
    assert (code, err) == (
        1,
        "UserError: There is no no-such-runc on this host. [Debian and Ubuntu: apt-get install runc]\n",
    )


def test_128_layers(runner: Runner, tmp_path: Path) -> None:
    for number in range(125):
        layer = tmp_path / "layers" / f"a rather long name, so that all together exceed one page:{number}"
        layer.mkdir()
        (layer / f"n{number}").touch()
        runner.layers.insert(0, layer)
    assert runner.sh("ls / | while read n; do case $n in n*) echo; esac; done | wc -l") == "125\n"


def test_one_layer(runner: Runner) -> None:
    runner.layers = runner.layers[2:]
    assert runner.sh("cat /gone") == "1"


def read_all(fd: int) -> str:
    data = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while select.select([fd], [], [], TIMEOUT_S)[0] and (block := os.read(fd, 4096)):
            data += block
    return data.decode()


def test_a_terminal_of_its_own(runner: Runner) -> None:
    primary, secondary = pty.openpty()
    # The word at the end tells that the trap is set: a Ctrl-C before would end the shell with 130.
    script = (
        "trap 'echo INT; exit 11' INT; test -t 0 && test -t 2 && echo $TERM && stty -a; echo ready; read line; sleep 60"
    )
    process = subprocess.Popen(
        runner.arguments("sh", "-c", script, tty=True),
        stdin=secondary, stdout=secondary, stderr=secondary,
        env=environment(), cwd=REPOSITORY, start_new_session=True,
    )  # fmt: skip
    os.close(secondary)
    with process:
        seen = b""
        while b"ready" not in seen:
            seen += os.read(primary, 4096)
        os.write(primary, b"\x03")
        rest = read_all(primary)
        assert process.wait(timeout=TIMEOUT_S) == 11
    os.close(primary)
    assert "xterm" in seen.decode()
    assert "baud" in seen.decode()
    assert "INT" in rest


def test_a_terminal_needs_one_outside(runner: Runner) -> None:
    code, _, err = runner.run("true", tty=True)
    assert (code, "standard input is not one" in err) == (2, True)
