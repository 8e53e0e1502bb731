"""Who may import whom (ARCHITECTURE.md): a room imports rooms that come before it, and itself."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "mica"
ORDER = (
    ("errors", "digest", "files", "linux", "flight", "logs", "sizes", "__init__"),
    ("tarentry", "tarheader", "tarstream"),
    ("repo", "oci"),
    ("metaimage",),
    ("store",),
    ("fetch",),
    ("publish",),
    ("thin",),
    ("sync",),
    ("portal",),
    ("mount",),
    ("node",),
    ("run",),
    ("engine",),
    ("drivers",),
    ("config",),
    ("cli",),
    ("__main__",),
)
RANK = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
ONLY_CLI = {"config", "cli"}
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_only_what_comes_before_it(path: Path) -> None:
    room = room_of(path)
    too_late = {other for other in imported_rooms(path) if RANK[other] > RANK[room]}
    assert not too_late, f"{room} imports {sorted(too_late)}"
    if room not in {"cli", "__main__"}:
        assert not imported_rooms(path) & ONLY_CLI


def test_every_room_has_a_place_in_the_order() -> None:
    assert {room_of(path) for path in MODULES} <= RANK.keys()
