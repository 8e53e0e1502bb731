"""The recipe: a wish list in YAML of the form that other CernVM-FS tools read (docs/format/recipe.md). Pure.

    version: 1
    user: robot                              # of the registry that thin images are pushed to
    cvmfs_repo: images.example.org
    output_format: '$(scheme)://registry.example.org/thin/$(image)'
    input:
      - 'https://registry.hub.docker.com/library/fedora:latest'
      - 'ghcr.io/org/app:3.*'

A malformed recipe is refused as a whole. A malformed line of `input` becomes a `Wish` with a problem, so that it
never stops the others.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mica.errors import UserError
from mica.oci.reference import DOCKER_HUB, HUB_HOSTS, Reference, TagPattern
from mica.repo.manifest import is_fqrn

SIZE_LIMIT = 1 << 20
WISH_LIMIT = 10_000
_VERSION = 1
_KNOWN = ("version", "user", "cvmfs_repo", "output_format", "input")
_VARIABLE = re.compile(r"\$\(([^)]*)\)")
_VARIABLES = ("scheme", "registry", "repository", "reference", "tag", "digest", "image")
_HUB_HOSTS = HUB_HOSTS | {"registry.hub.docker.com", "hub.docker.com"}


@dataclass(frozen=True, slots=True)
class Wish:
    """One line. `problem` is empty, or a sentence; then the other fields have no meaning."""

    text: str
    scheme: str = "https"
    name: str = ""
    problem: str = ""

    @property
    def source(self) -> str:
        """The source for a converter; its tag may be a pattern."""
        return f"docker://{self.name}"

    @property
    def registry(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`output_format` empty: thin images are not pushed. `user` is a user of its registry; empty: the usual login
    counts."""

    fqrn: str
    wishes: tuple[Wish, ...]
    output_format: str = ""
    user: str = ""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values only; a key that comes twice is an error, where YAML would drop the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - the library's
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        double = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if double is not None:
            raise yaml.YAMLError(f"the key {str(double)[:40]!r} comes twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def parse_recipe(data: bytes, what: str) -> Recipe:
    """Raises UserError naming `what` and the first thing wrong with it."""
    if len(data) > SIZE_LIMIT:
        raise UserError(f"{what} is larger than {SIZE_LIMIT >> 20} MiB.")
    try:
        document = yaml.load(data.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{what} is not YAML: {_reason(error)}.") from error
    try:
        return _recipe_from(document)
    except ValueError as error:
        raise UserError(f"{what} is not a recipe: {error}.", hint=f"Its keys are {', '.join(_KNOWN)}.") from error


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0][:100]
    return f"{problem}{where}"


def _recipe_from(document: Any) -> Recipe:
    if not isinstance(document, dict):
        raise ValueError("it has no keys")
    unknown = sorted(str(key) for key in document if key not in _KNOWN)
    if unknown:
        raise ValueError(f"it has the unknown key {unknown[0][:60]!r}")
    if document.get("version") != _VERSION:
        raise ValueError(f"its version is {str(document.get('version'))[:40]!r} and not {_VERSION}")
    fqrn = document.get("cvmfs_repo")
    if not isinstance(fqrn, str) or not is_fqrn(fqrn):
        raise ValueError("'cvmfs_repo' is not the name of a repository")
    wishes = document.get("input")
    if not isinstance(wishes, list) or not wishes:
        raise ValueError("'input' is not a list of images")
    if len(wishes) > WISH_LIMIT:
        raise ValueError(f"'input' has more than {WISH_LIMIT} lines")
    texts = {name: document.get(name) or "" for name in ("output_format", "user")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name!r} is not a text")
    _check_format(texts["output_format"])
    return Recipe(fqrn, tuple(map(parse_wish, wishes)), **texts)


def _check_format(text: str) -> None:
    for name in _VARIABLE.findall(text):
        if name not in _VARIABLES:
            raise ValueError(
                f"'output_format' has the unknown variable $({name[:40]}); known are "
                f"{', '.join(f'$({one})' for one in _VARIABLES)}"
            )


def parse_wish(line: Any) -> Wish:
    """`[scheme://]registry/repository[:tag][@digest]`; the tag may be a pattern. A tag or a digest must be there."""
    if not isinstance(line, str) or not line.isprintable():
        return Wish(str(line)[:200], problem="it is not a text")
    scheme, separator, rest = line.strip().partition("://")
    if not separator:
        scheme, rest = "https", line.strip()
    if scheme not in {"http", "https"}:
        return Wish(line, problem=f"{scheme[:20]!r} is neither http nor https")
    registry, slash, repository = rest.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        return Wish(line, problem="it does not begin with a registry")
    name = f"{DOCKER_HUB if registry in _HUB_HOSTS else registry}/{repository}"
    if "@" not in repository and ":" not in repository:
        return Wish(line, problem="it has neither a tag nor a digest")
    try:
        if TagPattern.parse(name) is None:
            Reference.parse(name)
    except UserError as error:
        return Wish(line, problem=str(error).rstrip(".").partition(": ")[2] or str(error))
    return Wish(line, scheme, name)


def format_output(text: str, reference: Reference, scheme: str) -> str:
    """The name of a thin image: an output format with its variables filled in."""
    suffix = f":{reference.tag}" if reference.tag is not None else ""
    suffix += f"@{reference.digest}" if reference.digest is not None else ""
    values: Mapping[str, str] = {
        "scheme": scheme,
        "registry": reference.registry,
        "repository": reference.repository,
        "reference": suffix,
        "tag": reference.tag or "",
        "digest": reference.digest or "",
        "image": f"{reference.repository}{suffix}",
    }
    return _VARIABLE.sub(lambda match: values[match[1]], text)


def output_registry(text: str) -> str:
    """The registry that an output format names itself; empty if a variable gives it, or if there is no format."""
    _, separator, rest = text.partition("://")
    registry = (rest if separator else text).partition("/")[0]
    return "" if _VARIABLE.search(registry) else registry


def parse_output_name(text: str) -> tuple[str, Reference]:
    """Scheme and reference of a thin image's name. A digest becomes a tag, because a thin image has one of its own.

    Raises UserError.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "https", text
    if scheme not in {"http", "https"}:
        raise UserError(f"{text[:200]!r} is not the name of a thin image: its scheme is neither http nor https.")
    name, at, digest = rest.partition("@")
    reference = Reference.parse(name)
    if at and ":" not in name.rpartition("/")[2]:
        reference = Reference(reference.registry, reference.repository, digest.replace(":", "-")[:128])
    return scheme, reference
