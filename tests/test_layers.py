"""Who may import whom (ARCHITECTURE.md): a room imports rooms that come before it, and itself; a node never imports a
publisher, nor a publisher a node; and no modules import each other in a circle."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "mica"
ORDER = (
    (
        "errors",
        "digest",
        "files",
        "mountinfo",
        "linux",
        "flight",
        "logs",
        "signals",
        "sizes",
        "streams",
        "texts",
        "unionsigns",
        "serverprocess",
        "httpbase",
    ),
    ("__init__",),
    ("tarentry", "tarheader", "tarstream"),
    ("repo", "oci"),
    ("thin",),
    ("metaimage",),
    ("store",),
    ("cache",),
    ("fetch",),
    ("publish",),
    ("replicate",),
    ("server",),
    ("convert",),
    ("jobs",),
    ("sync",),
    ("collect",),
    ("portal",),
    ("fuse",),
    ("union",),
    ("mount",),
    ("layers",),
    ("node",),
    ("dataplane",),
    ("daemon",),
    ("providers",),
    ("run",),
    ("engine",),
    ("drivers",),
    ("config",),
    ("cli",),
    ("__main__",),
)
RANK = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
ONLY_CLI = {"config", "cli"}
PUBLISHING = {"publish", "replicate", "server", "convert", "jobs", "sync", "collect", "portal"}
NODE = {"fuse", "mount", "union", "layers", "dataplane", "daemon", "providers", "run", "engine", "drivers"}
NEVER = {
    **dict.fromkeys(NODE | {"cache", "fetch"}, PUBLISHING),
    **dict.fromkeys(PUBLISHING, NODE),
    "engine": PUBLISHING | {"run"},
    "drivers": PUBLISHING | {"run"},
    "run": PUBLISHING | {"engine", "drivers"},
}
"""Rooms that a room never imports, although they come before it."""
MODULES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path) -> set[str]:
    """Rooms of our own that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "mica":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mica.")}
    return {room if room in RANK else "__init__" for room in found}


def name_of(path: Path) -> str:
    parts = ("mica", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, names: set[str]) -> set[str]:
    """Modules of our own that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_only_what_comes_before_it(path: Path) -> None:
    room, imported = room_of(path), imported_rooms(path)
    too_late = {other for other in imported if RANK[other] > RANK[room]}
    assert not too_late, f"{room} imports {sorted(too_late)}"
    never = imported & NEVER.get(room, set())
    assert not never, f"{room} imports {sorted(never)}"
    if room not in {"cli", "__main__"}:
        assert not imported & ONLY_CLI


def test_every_room_has_a_place_in_the_order() -> None:
    assert {room_of(path) for path in MODULES} <= RANK.keys()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also none that is closed only when a function is called: such modules are one, and nobody understands half."""
    names = {name_of(path) for path in MODULES}
    waiting = {name_of(path): imported_modules(path, names - {"mica"}) for path in MODULES}
    # Whoever imports nothing that still waits is in no circle.
    while free := {name for name, imported in waiting.items() if not imported & waiting.keys()}:
        waiting = {name: imported for name, imported in waiting.items() if name not in free}
    circles = {name: sorted(imported & waiting.keys()) for name, imported in waiting.items()}
    assert not circles
