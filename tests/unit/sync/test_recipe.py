"""Recipes: what is read, what is refused as a whole, what is one bad line."""

import pytest

from mica.errors import UserError
from mica.oci.reference import Reference
from mica.sync.recipe import (
    Recipe,
    Wish,
    format_output,
    output_registry,
    parse_output_name,
    parse_recipe,
    parse_wish,
)

GOOD = b"""
version: 1
user: robot
cvmfs_repo: images.example.org
output_format: '$(scheme)://registry.example.org/thin/$(image)'
input:
  - 'https://registry.hub.docker.com/library/fedora:latest'
  - 'ghcr.io/org/app:3.*'
  - ghcr.io/org/app
"""
DIGEST = f"sha256:{'ab' * 32}"


def test_recipe() -> None:
    assert parse_recipe(GOOD, "r") == Recipe(
        "images.example.org",
        (
            Wish("https://registry.hub.docker.com/library/fedora:latest", "https", "docker.io/library/fedora:latest"),
            Wish("ghcr.io/org/app:3.*", "https", "ghcr.io/org/app:3.*"),
            Wish("ghcr.io/org/app", problem="it has neither a tag nor a digest"),
        ),
        "$(scheme)://registry.example.org/thin/$(image)",
        "robot",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((b"version: 1", b"version: 2"), "version is '2' and not 1"),
        ((b"version: 1", b""), "version is 'None'"),
        ((b"user:", b"usr:"), "unknown key 'usr'"),
        ((b"user: robot", b"user: [a]"), "'user' is not a text"),
        ((b"images.example.org", b"'../x'"), "'cvmfs_repo' is not the name"),
        ((b"$(image)", b"$(imago)"), r"unknown variable \$\(imago\)"),
        ((b"input:", b"input: 3\nx:"), "unknown key 'x'"),
        ((b"version: 1", b"version: 1\nversion: 1"), "the key 'version' comes twice"),
        ((b"version: 1", b"version: [1"), "is not YAML: .* in line"),
        ((b"version: 1", b"version: !!python/object/apply:os.system ['true']"), "is not YAML"),
        ((b"version", b"\xff"), "is not YAML"),
    ],
)
def test_what_is_no_recipe_is_one_sentence(change: tuple[bytes, bytes], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_recipe(GOOD.replace(*change, 1), "The recipe r")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"3", b"a: b: c", b"&a [*a]", b"? [1]\n: 2", b"{" * 100_000, b" " * 2**21]
)
def test_other_documents_are_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="The recipe r"):
        parse_recipe(data, "The recipe r")


def test_list_that_grows_by_aliases_stays_small() -> None:
    lines = [b"a0: &a0 [x]"] + [b"a%d: &a%d [%s]" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30)]
    with pytest.raises(UserError, match="unknown key"):
        parse_recipe(b"\n".join(lines), "The recipe r")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (3, "not a text"),
        ("", "does not begin with a registry"),
        ("debian:12", "does not begin with a registry"),
        ("library/debian:12", "does not begin with a registry"),
        ("ftp://ghcr.io/a/b:1", "neither http nor https"),
        ("ghcr.io/a/b", "neither a tag nor a digest"),
        ("ghcr.io/A/b:1", "lower-case"),
        ("ghcr.io/a/b@sha256:12", "digest"),
        ("ghcr.io/a*/b:1", "lower-case"),
        ("ghcr.io/a/b:\x1b[31m", "not a text"),
    ],
)
def test_bad_lines_have_a_problem(line: object, problem: str) -> None:
    assert problem in parse_wish(line).problem


def test_outputs() -> None:
    tagged = Reference.parse("ghcr.io/a/b:1.2")
    fixed = Reference("ghcr.io", "a/b", None, DIGEST)
    every = "$(scheme) $(registry) $(repository) $(reference) $(tag) $(digest) $(image)"
    assert format_output(every, tagged, "https") == "https ghcr.io a/b :1.2 1.2  a/b:1.2"
    assert format_output("$(image)", fixed, "https") == f"a/b@{DIGEST}"
    assert parse_output_name("http://reg.example/thin/a/b:1.2") == ("http", Reference.parse("reg.example/thin/a/b:1.2"))
    assert parse_output_name(f"reg.example/a/b@{DIGEST}")[1].tag == DIGEST.replace(":", "-")
    for bad in ("ftp://a.b/c:1", "https://a.b/C:1"):
        with pytest.raises(UserError):
            parse_output_name(bad)


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("$(scheme)://registry.example.org:5000/thin/$(image)", "registry.example.org:5000"),
        ("registry.example.org/thin/$(image)", "registry.example.org"),
        ("https://$(registry)/thin/$(image)", ""),
        ("https://thin.$(registry)/$(image)", ""),
        ("", ""),
    ],
)
def test_registry_that_an_output_format_names(text: str, registry: str) -> None:
    assert output_registry(text) == registry
