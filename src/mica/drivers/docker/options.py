"""What an engine's administrator may say with `--storage-opt mica.NAME=VALUE`. Pure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from mica.engine.unions import UnionKind
from mica.engine.upload import CommitMode
from mica.errors import UserError
from mica.repo.manifest import is_fqrn

PREFIX = "mica."
_NAMES = ("cache", "commit", "external", "method", "repositories", "union")
_Choice = TypeVar("_Choice", UnionKind, CommitMode)


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """`repositories`: those whose images may be used, None: those of the node. `external`: where another client shows
    repositories, None: layers come from the node. `cache`: the directory that the administrator gives as the node's
    cache."""

    repositories: frozenset[str] | None = None
    external: Path | None = None
    cache: Path | None = None
    union: UnionKind | None = None
    commit: CommitMode = CommitMode.LOCAL

    @classmethod
    def parse(cls, texts: list[str]) -> Self:
        """Raises UserError naming the option that is wrong."""
        given: dict[str, str] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if not name.startswith(PREFIX) or name.removeprefix(PREFIX) not in _NAMES or not equals:
                known = ", ".join(PREFIX + name for name in _NAMES)
                raise UserError(f"{text[:120]!r} is no storage option of mica; known are {known}.")
            given[name.removeprefix(PREFIX)] = value
        method = given.get("method", "external" if "external" in given else "internal")
        if method not in {"internal", "external"}:
            raise UserError(f"Storage option mica.method is {method[:40]!r}, neither internal nor external.")
        if method == "internal" and "external" in given:
            raise UserError("Storage option mica.external needs mica.method=external.")
        return cls(
            _fqrns(given["repositories"]) if "repositories" in given else None,
            _directory("external", given.get("external", "/cvmfs")) if method == "external" else None,
            _directory("cache", given["cache"]) if "cache" in given else None,
            _choice(UnionKind, "union", given["union"]) if "union" in given else None,
            _choice(CommitMode, "commit", given.get("commit", "local")),
        )


def _fqrns(text: str) -> frozenset[str]:
    names = frozenset(filter(None, text.split(",")))
    for name in names:
        if not is_fqrn(name):
            raise UserError(f"{name[:120]!r} in storage option mica.repositories is not the name of a repository.")
    return names


def _directory(name: str, text: str) -> Path:
    if not text.startswith("/"):
        raise UserError(f"Storage option mica.{name} is {text[:120]!r}, which is not an absolute path.")
    return Path(text)


def _choice(kind: type[_Choice], name: str, text: str) -> _Choice:
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"Storage option mica.{name} is {text[:40]!r}, not one of {', '.join(kind)}.") from error
