"""`mica doctor`: what this host can do for containers, tried and not guessed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from mica.cli.node import NODE_DIRECTORY, NodeOption
from mica.cli.options import CacheOption, ConfigOption, JsonOption, StateOption


class Check(NamedTuple):
    """`reason` says why it does not work, or what is to be known if it does."""

    what: str
    works: bool
    reason: str = ""


def doctor(
    state: StateOption,
    config: ConfigOption = None,
    cache: CacheOption = None,
    node: NodeOption = NODE_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Tell what this host can do, and how layers are therefore mounted.

    The exit code is 1 if containers cannot run here at all.
    """
    from mica.cli.output import print_json, print_table
    from mica.cli.places import Places

    places = Places(state, config=config, cache=cache)
    checks = [*_host(node)]
    method = None
    if all(check.works for check in checks if check.what in _NEEDED):
        from mica.node.stack import Method

        facts = places.kernel_facts()
        reasons = {kind: facts.reason_against(kind) for kind in Method if kind is not Method.EXTERNAL}
        checks += [Check(f"method {kind}", not reason, reason or _MEANING[kind]) for kind, reason in reasons.items()]
        method = places.method(None).value
    document: dict[str, Any] = {
        "kernel": os.uname().release,
        "cache": str(places.cache),
        "method": method,
        "checks": [check._asdict() for check in checks],
    }
    if json:
        print_json(document)
    else:
        print_table(("what", "works", "note"), [(c.what, "yes" if c.works else "no", c.reason) for c in checks])
        how = f"layers are mounted by method {method!r}" if method else "containers cannot run here"
        typer.echo(f"Kernel {document['kernel']}, cache {document['cache']}: {how}.")
    if method is None:
        raise typer.Exit(1)


_NEEDED = {"root", "FUSE", "overlayfs"}
_MEANING = {
    "kernel": "cached files and all metadata come from the kernel alone",
    "loop": "the same, with a loop device for each layer",
    "ordinary": "metadata from the kernel, content through one server",
    "repository": "metadata and content through one server",
}


def _host(run: Path) -> Iterator[Check]:
    is_root = os.geteuid() == 0
    yield Check("root", is_root, "" if is_root else "mounting needs root")
    has_fuse = os.path.exists("/dev/fuse")
    yield Check("FUSE", has_fuse, "" if has_fuse else "/dev/fuse is missing: modprobe fuse")
    for name, what in (("overlay", "overlayfs"), ("erofs", "EROFS")):
        yield _filesystem(name, what)
    runc = shutil.which("runc")
    yield Check("runc", runc is not None, runc or "needed by mica run only: apt-get install runc")
    node = _node(run)
    yield Check("node", bool(node), node or f"none runs in {run}; mica run needs none")


def _filesystem(name: str, what: str) -> Check:
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text(encoding="ascii").splitlines()}
    if name in known:
        return Check(what, works=True)
    module = Path(f"/lib/modules/{os.uname().release}")
    # A file system that is a module is loaded when it is first mounted, so only a kernel without modules says no here.
    return Check(what, module.is_dir(), "not loaded yet" if module.is_dir() else "not in this kernel")


def _node(run: Path) -> str:
    from mica.errors import MicaError
    from mica.node.client import open_node
    from mica.node.directory import NodeDirectory

    try:
        with open_node(NodeDirectory(run).service) as node:
            return f"process {node.ask('status')['pid']} in {run}"
    except MicaError:
        return ""
