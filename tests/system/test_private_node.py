"""`mica run` without a node: what serves its files may die at any time, and a mistake is always one sentence."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli import Outcome, mica
from tests.support.nodes import Published, children_of, publish_tars, served
from tests.support.tools import need, need_fuse
from tests.support.waiting import eventually

from mica.fetch.counters import Traffic

pytestmark = pytest.mark.system
FILES = 40
PROGRAM = "cat /bin/busybox >/dev/null; echo up; read go; cat /data/* | wc -c; echo end"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    need_fuse()
    need("runc", "runc")
    work = tmp_path_factory.mktemp("private")
    with served(publish_tars(work, [root_with(Path(need("busybox", "busybox-static")).read_bytes())])) as image:
        yield image


@pytest.mark.parametrize("has_state", [True, False])
def test_status_names_a_run_and_what_is_left_of_it_when_it_is_killed(
    image: Published, tmp_path: Path, has_state: bool
) -> None:
    run = Run(image, tmp_path)
    run.wait_until_up()
    status = ["status", "--node", str(tmp_path / "none")]
    looked_from = tmp_path if has_state else tmp_path / "other"
    (facts,) = own(mica(looked_from, *status, "--json"), tmp_path)
    assert (facts["state"], facts["pid"], facts["image"]) == ("running", run.process.pid, "docker.io/test/image:1")
    assert facts["cache"] == str(tmp_path / "cache")
    token = (tmp_path / "run" / facts["name"] / "cgroup").read_text()
    run.process.kill()
    run.finish()
    (facts,) = own(mica(tmp_path, *status, "--json"), tmp_path)
    assert (facts["state"], facts["pid"]) == ("gone", None)
    assert f"mica doctor --state {tmp_path} removes it" in mica(tmp_path, *status).stdout
    assert facts["name"] in mica(tmp_path, "doctor", "--cache", tmp_path / "doctor").stdout
    assert own(mica(tmp_path, *status, "--json"), tmp_path) == []
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{token}"))


def own(outcome: Outcome, state: Path) -> list[dict[str, Any]]:
    containers = json.loads(outcome.stdout)["containers"]
    return [facts for facts in containers if Path(facts["directory"]).is_relative_to(state)]


def root_with(busybox: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.mode, member.linkname = kind, len(data), 0o755, link
            tar.addfile(member, io.BytesIO(data))

        add("bin/busybox", busybox)
        for applet in ("sh", "cat", "wc", "echo"):
            add(f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox")
        for number in range(FILES):
            add(f"data/{number}", b"%d" % number * 1000)
    return buffer.getvalue()


class Run:
    """`mica run` of the program in a state directory of its own."""

    def __init__(self, image: Published, state: Path) -> None:
        self._image = image
        self._state = state
        self.process = subprocess.Popen(
            self.command(PROGRAM), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def command(self, program: str) -> list[str]:
        image = self._image
        options = ["--state", str(self._state), "--url", image.url, "--key", str(image.publication.key), "-i"]
        return [sys.executable, "-m", "mica", "run", *options, image.publication.thin, "/bin/sh", "-c", program]

    def wait_until_up(self) -> dict[str, int]:
        """What serves it: the keeper, the service (which has children), the server of the object filesystem."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"
        (keeper,) = (pid for pid in children_of(self.process.pid) if is_python(pid))
        service, session = sorted(children_of(keeper), key=lambda pid: not children_of(pid))
        return {"keeper": keeper, "service": service, "session": session}

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate("go\n", timeout=60)
        return self.process.returncode, out, err


def is_python(pid: int) -> bool:
    return os.path.realpath(f"/proc/{pid}/exe") == os.path.realpath(sys.executable)


SIZE = sum(len(str(number)) * 1000 for number in range(FILES))


@pytest.mark.parametrize("victims", [["service"], ["session"], ["service", "session"]])
def test_a_server_that_dies_is_started_again(image: Published, tmp_path: Path, victims: list[str]) -> None:
    run = Run(image, tmp_path)
    servers = run.wait_until_up()
    for victim in victims:
        os.kill(servers[victim], signal.SIGKILL)
    code, out, err = run.finish()
    assert (code, out) == (0, f"{SIZE}\nend\n"), err
    assert err.count("died (signal 9) and is started again") == len(victims)


def test_without_its_keeper_reads_fail_and_the_reason_is_told(image: Published, tmp_path: Path) -> None:
    run = Run(image, tmp_path)
    servers = run.wait_until_up()
    os.kill(servers["keeper"], signal.SIGKILL)
    assert all_end(set(servers.values()))
    code, out, err = run.finish()
    assert (code, out) == (0, "0\nend\n")
    # Before Linux 6.5 the union has the object filesystem among its layers: its directory cannot be listed either.
    assert err.count("can't open") == FILES or "can't open '/data/*'" in err
    assert "the node of this run died (signal 9)" in err


def test_signals_for_a_whole_batch_job_let_files_open_to_the_end(image: Published, tmp_path: Path) -> None:
    run = Run(image, tmp_path)
    for pid in run.wait_until_up().values():
        os.kill(pid, signal.SIGTERM)
    assert run.finish() == (0, f"{SIZE}\nend\n", "")


def mistaken(image: Published, work: Path, *options: str) -> tuple[int, str]:
    """Exit code, and the sentence without a traceback."""
    thin = image.publication.thin
    done = mica(work, "run", "--url", "http://127.0.0.1:9/x", "--cache", work / "cache", *options, thin, "true")
    return done.code, done.sentence


def test_a_mistake_is_one_sentence_every_time(image: Published, tmp_path: Path) -> None:
    for _ in range(15):
        code, sentence = mistaken(image, tmp_path, "--key", "nokey.pub")
        assert (code, sentence) == (1, "Cannot read the public key nokey.pub: No such file or directory.")
    assert mistaken(image, tmp_path, "--key", str(image.publication.key), "--network", "x")[0] == 2
    assert mistaken(image, tmp_path, "--key", str(image.publication.key), "-v", "/none")[0] == 2
    code, sentence = mistaken(image, tmp_path, "--key", str(image.publication.key))
    assert (code, "127.0.0.1:9" in sentence) == (4, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_can_be_ended_at_any_moment_of_its_start(
    image: Published, tmp_path: Path, number: signal.Signals
) -> None:
    begun = time.monotonic()
    Run(image, tmp_path / "whole").finish()
    whole_s = time.monotonic() - begun
    for turn in range(12):
        run = Run(image, tmp_path / "state")
        assert eventually(partial(children_of, run.process.pid))
        time.sleep(whole_s * turn / 12)
        found = descendants_of(run.process.pid)
        run.process.send_signal(number)
        out, err = run.process.communicate("go\n", timeout=60)
        assert "Traceback" not in err, (turn, err)
        assert all_end(found), (turn, out)
    shutil.rmtree(tmp_path / "state")


def descendants_of(pid: int) -> set[int]:
    found = children_of(pid)
    return found.union(*map(descendants_of, found))


def all_end(pids: set[int]) -> bool:
    return eventually(lambda: not any(map(lives, pids)))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("method", ["", "repository"])
def test_what_its_servers_fetched_is_in_the_statistics(image: Published, tmp_path: Path, method: str) -> None:
    options: list[str | Path] = ["--url", image.url, "--key", image.publication.key, "--stats", tmp_path / "stats"]
    if method:
        options += ["--method", method]
    done = mica(tmp_path, "run", *options, image.publication.thin, "/bin/sh", "-c", "cat /data/* | wc -c")
    assert (done.code, done.stdout) == (0, f"{SIZE}\n"), done.stderr
    figures = json.loads((tmp_path / "stats").read_text())
    assert figures.keys() == set(Traffic._fields)
    assert figures["objects_fetched"] > FILES
    assert figures["files_opened"] >= FILES
    assert figures["requests"] > FILES
    assert figures["io_errors"] == 0
