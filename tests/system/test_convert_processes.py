"""Conversions as processes: killed ones leave their finished layers, several at once do the work once."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli import mica
from tests.support.noise import noise
from tests.support.registry import Reply, Request, ScriptedRegistry, scripted_registry
from tests.unit.oci.samples import make_sample, make_tar

from mica.oci import mediatypes

pytestmark = pytest.mark.system
FQRN = "processes.example.org"
SAMPLE = make_sample([make_tar({"etc/name": b"first"}), make_tar({"usr/big": noise(500_000)})])
FIRST, SECOND = (layer.digest for layer in SAMPLE.layers)
_PATIENCE_S = 60


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with scripted_registry() as registry:
        registry.add_blobs(SAMPLE.blobs)
        registry.add_manifest("1", mediatypes.OCI_MANIFEST, SAMPLE.blobs[SAMPLE.manifest.digest])
        yield registry


@pytest.fixture
def state(tmp_path: Path) -> Path:
    assert mica(tmp_path / "state", "repo", "create", FQRN, "--storage", tmp_path / "storage").code == 0
    return tmp_path / "state"


def start(state: Path, registry: ScriptedRegistry) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mica", "convert", f"docker://{registry.host}/team/image:1", FQRN, "--json"]
    environment = {**os.environ, "MICA_STATE": str(state)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def hold_second_layer(registry: ScriptedRegistry) -> threading.Event:
    """Answer for it only when the event is set."""
    gate = threading.Event()
    real = registry.answer

    def answer(request: Any) -> Reply:
        if SECOND in request.path:
            gate.wait(_PATIENCE_S)
        return real(request)

    registry.answer = answer  # type: ignore[method-assign]
    return gate


def await_file(path: Path) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not path.exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert path.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_conversion_leaves_its_finished_layers(
    state: Path, registry: ScriptedRegistry, how: signal.Signals
) -> None:
    gate = hold_second_layer(registry)
    layers = state / "repositories" / FQRN / "layers"
    with start(state, registry) as process:
        await_file(layers / f"{FIRST[7:]}.json")
        process.send_signal(how)
        gate.set()
        assert process.wait(_PATIENCE_S) != 0
    assert mica(state, "repo", "check", FQRN).code == 0
    registry.requests.clear()
    done = mica(state, "convert", f"docker://{registry.host}/team/image:1", FQRN, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["new_layers"] == 2
    assert not registry.paths(FIRST)
    assert not list(layers.iterdir())
    assert mica(state, "repo", "check", FQRN, "--hash").code == 0


@pytest.mark.parametrize("silent", ["manifests/1", SECOND])
def test_ctrl_c_does_not_wait_for_a_silent_registry(state: Path, registry: ScriptedRegistry, silent: str) -> None:
    gate, asked = threading.Event(), threading.Event()
    real = registry.answer

    def answer(request: Any) -> Reply:
        if silent in request.path:
            asked.set()
            gate.wait(2 * _PATIENCE_S)
        return real(request)

    registry.answer = answer  # type: ignore[method-assign]
    with start(state, registry) as process:
        try:
            assert asked.wait(_PATIENCE_S)
            process.send_signal(signal.SIGINT)
            # The registry stays silent for longer than that.
            assert process.wait(_PATIENCE_S / 2) == 130
        finally:
            gate.set()
            process.kill()
    assert mica(state, "repo", "check", FQRN).code == 0


def test_processes_at_once_do_the_work_once(state: Path, registry: ScriptedRegistry) -> None:
    gate = hold_second_layer(registry)
    processes = [start(state, registry) for _ in range(4)]
    time.sleep(1)
    gate.set()
    told = []
    for process in processes:
        out, errors = process.communicate(timeout=_PATIENCE_S)
        assert process.returncode == 0, errors
        told.append(json.loads(out))
    assert sum(one["new_layers"] for one in told) == 2
    assert len({one["revision"] for one in told}) == 1
    assert (len(registry.paths(FIRST)), len(registry.paths(SECOND))) == (1, 1)
    assert mica(state, "repo", "check", FQRN, "--hash").code == 0


def test_tokens_that_expire_during_a_layer_of_a_gigabyte(state: Path) -> None:
    """The registry breaks off all the time, and a token is good for two requests: each piece needs a new one."""
    content = b"\x7fELF" + bytes(100_000_000)  # not cut by content, which takes its time
    sample = make_sample([make_tar({f"file{number}": content for number in range(10)})], kind="")
    (layer,) = sample.layers
    assert layer.size > 999_000_000
    with scripted_registry() as registry:
        registry.add_blobs(sample.blobs)
        registry.add_manifest("1", mediatypes.OCI_MANIFEST, sample.blobs[sample.manifest.digest])
        registry.needs_token, registry.token_uses = True, 2
        real = registry.answer

        def answer(request: Request) -> Reply:
            reply = real(request)
            return dataclasses.replace(reply, cut_after=150_000_000) if layer.digest in request.path else reply

        registry.answer = answer  # type: ignore[method-assign]
        done = mica(state, "convert", f"docker://{registry.host}/team/image:1", FQRN, "--json", timeout_s=300)
    assert done.code == 0, done.stderr
    assert len(registry.tokens) >= 4
    assert mica(state, "repo", "check", FQRN).code == 0
    shown = mica(state, "repo", "stat", FQRN, f".layers/{layer.digest[7:9]}/{layer.digest[7:]}/layerfs/file9", "--json")
    assert json.loads(shown.stdout)["size"] == len(content)
