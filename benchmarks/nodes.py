"""A node of its own for a workload, and images mounted through it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.support import FQRN, Mounting, public_key, read_all, remove
from mica.daemon.client import NodeClient, open_node
from mica.dataplane.nodedirectory import NodeDirectory
from mica.layers.stack import LayerStack
from mica.union.overlay import open_overlay, plan_overlay


@contextlib.contextmanager
def running_node(work: Path, url: str, *, cache: str = "cache") -> Iterator[NodeDirectory]:
    """`mica node` for the repository of a workspace."""
    node = NodeDirectory(work / f"node-{cache}")
    config = work / f"node-{cache}.toml"
    config.write_text(
        f"[node]\ncache = '{work / cache}'\n[repositories.'{FQRN}']\nurls = ['{url}']\nkeys = ['{public_key(work)}']\n"
    )
    command = [sys.executable, "-m", "mica", "node", "--config", str(config), "--node", str(node.path)]
    environment = {**os.environ, "MICA_STATE": str(work / "none")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield node
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            stop = [sys.executable, "-m", "mica", "node", "--stop", "--node", str(node.path)]
            subprocess.run(stop, check=True, env=environment)


def descriptor_of(thin: Path, tag: str) -> dict[str, Any]:
    """The image descriptor of a thin image in a layout."""
    command = [sys.executable, "-m", "mica", "inspect", "--json", f"oci:{thin}:{tag}"]
    layers = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["layers"]
    named = [{"digest": layer["digest"], "url": layer["url"]} for layer in layers]
    return {"version": "1.0", "origin": "bench", "layers": named}


@contextlib.contextmanager
def union(client: NodeClient, descriptor: dict[str, Any], place: Path) -> Iterator[Path]:
    """The image of a descriptor under a writable layer."""
    stack = LayerStack.from_json(client.ask("layers", descriptor=descriptor))
    for name in ("upper", "work", "merged"):
        (place / name).mkdir(parents=True, exist_ok=True)
    plan = plan_overlay(stack.lower, place / "upper", place / "work", place / "merged", stack.options())
    with open_overlay(plan) as merged:
        yield merged


@contextlib.contextmanager
def cached(work: Path, url: str) -> Iterator[Mounting]:
    """A node with all of the image `work/thin:bench` in its cache; mounts it as for a container that starts then."""
    descriptor = descriptor_of(work / "thin", "bench")
    with running_node(work, url) as node:

        @contextlib.contextmanager
        def mounting() -> Iterator[Path]:
            with open_node(node.service) as client, union(client, descriptor, work / "ours") as target:
                yield target
            remove(work / "ours")

        # A large file that this one opened before it was whole stays the object filesystem's for this one.
        with mounting() as first:
            read_all(first)
        yield mounting
