"""`mica doctor`: what this host can do for containers. Each thing is tried, not guessed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from mica.cli.node import NODE_DIRECTORY, NodeOption
from mica.cli.options import CacheOption, ConfigOption, JsonOption, StateOption, run_root


class Check(NamedTuple):
    """`reason` says why it does not work, or what users have to know if it does."""

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
    """Tell what this host can do and how it mounts layers; remove what killed containers left behind.

    The exit code is 1 if containers cannot run here at all.
    """
    from mica.cli.places import Places
    from mica.cli.printing import print_json, print_table
    from mica.run.scratch import sweep

    places = Places(state, config=config, cache=cache)
    removed = sweep(run_root(state)) if os.geteuid() == 0 else []
    checks = [*_host(node)]
    method, how = None, "containers cannot run here"
    works = {check.what for check in checks if check.works}
    if works >= _NEEDED:
        from mica.layers.stack import Method

        facts = places.kernel_facts()
        reasons = {kind: facts.reason_against(kind) for kind in Method if kind is not Method.EXTERNAL}
        checks += [Check(f"method {kind}", not reason, reason or _MEANING[kind]) for kind, reason in reasons.items()]
        note = (
            ""
            if facts.resends
            else "it needs Linux 6.9. Here programs get errors if a node is killed while one of them waits for it"
        )
        checks.append(
            Check(
                "following",
                facts.resends,
                note or "if a node is killed, programs that wait for it are served by the next one",
            )
        )
        method = places.method(None).value
        how = f"layers are mounted by method {method!r}"
    elif works >= _NEEDED_WITHOUT_OVERLAYFS:
        method = "external"
        how = "a Docker Engine can use AUFS, with thin images' layers from another client (mica.method=external)"
    document: dict[str, Any] = {
        "kernel": os.uname().release,
        "cache": str(places.cache),
        "method": method,
        "checks": [check._asdict() for check in checks],
        "removed_containers": removed,
    }
    if json:
        print_json(document)
    else:
        print_table(("what", "works", "note"), [(c.what, "yes" if c.works else "no", c.reason) for c in checks])
        typer.echo(f"Kernel {document['kernel']}, cache {document['cache']}: {how}.")
        if removed:
            typer.echo(f"Removed what killed containers left: {', '.join(removed)}.")
    if method is None:
        raise typer.Exit(1)


_NEEDED = {"root", "FUSE", "overlayfs"}
_NEEDED_WITHOUT_OVERLAYFS = {"root", "AUFS"}
_MEANING = {
    "kernel": "cached files and all metadata come from the kernel alone",
    "loop": "the same, with a loop device for each layer",
    "ordinary": "metadata from the kernel, content through one server",
    "ordinary-loop": "the same, with a loop device for each layer",
    "repository": "metadata and content through one server",
}


def _host(run: Path) -> Iterator[Check]:
    is_root = os.geteuid() == 0
    yield Check("root", is_root, "" if is_root else "mounting needs root")
    has_fuse = os.path.exists("/dev/fuse")
    yield Check("FUSE", has_fuse, "" if has_fuse else "/dev/fuse is missing: modprobe fuse")
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text(encoding="ascii").splitlines()}
    yield from filesystem_checks(known, has_modules=Path(f"/lib/modules/{os.uname().release}").is_dir())
    runc = shutil.which("runc")
    yield Check("runc", runc is not None, runc or "needed by mica run only: apt-get install runc")
    node = _node(run)
    yield Check("node", bool(node), node or f"no node runs in {run}; mica run works without one")


def filesystem_checks(known: set[str], *, has_modules: bool) -> Iterator[Check]:
    """What a kernel with these file systems can mount. Pure."""
    for name, what in (("overlay", "overlayfs"), ("erofs", "EROFS")):
        if name in known:
            yield Check(what, works=True)
        else:
            # A module is loaded at the first mount, so only a kernel without modules says no here.
            yield Check(what, has_modules, "not loaded yet" if has_modules else "not in this kernel")
    if "aufs" in known:
        yield Check("AUFS", works=True, reason="for a Docker Engine only")


def _node(run: Path) -> str:
    from mica.daemon.client import open_node
    from mica.dataplane.nodedirectory import NodeDirectory
    from mica.errors import MicaError

    try:
        with open_node(NodeDirectory(run).service) as node:
            return f"process {node.ask('status')['pid']} in {run}"
    except MicaError:
        return ""
