"""registries.conf: which names are blocked, which are asked elsewhere, and what short names stand for."""

from pathlib import Path

import pytest

from mica.errors import UserError
from mica.oci.endpoints import HostConfig
from mica.oci.reference import Reference
from mica.oci.registriesconf import NO_REGISTRIES_CONF, RegistriesConf, parse_registries_conf
from mica.oci.transport import Trust

DIGEST = f"sha256:{'ab' * 32}"


def conf(*texts: str) -> RegistriesConf:
    """Files in the order in which they are read."""
    found = NO_REGISTRIES_CONF
    for text in texts:
        found = found.followed_by(parse_registries_conf(text.encode(), what="registries.conf"))
    return found


def rule(**members: object) -> str:
    lines = (
        f"{name.replace('_', '-')} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
        for name, value in members.items()
    )
    return "[[registry]]\n" + "\n".join(lines) + "\n"


def config(text: str, name: str) -> HostConfig:
    found = conf(text).hosts_of(Reference.parse(name), own_trust)
    assert found is not None
    return found


def own_trust(registry: str) -> Trust | None:
    return Trust((Path(registry),)) if "own" in registry else None


def places(text: str, name: str) -> list[str]:
    """Where an image is asked for, in order."""
    found = config(text, name)
    return [f"{one.host}/{one.repository}" for one in (*found.mirrors, *([found.server] if found.server else []))]


def blocked(prefix: str) -> str:
    return rule(prefix=prefix, blocked=True, **({} if prefix.startswith("*") else {"location": prefix}))


PREFIX_TABLE = [
    ("a.example", "a.example/x:1", True),
    ("a.example", "a.example:5000/x:1", True),
    ("a.example", "a.example.org/x:1", False),
    ("a.example", "b.a.example/x:1", False),
    ("a.example/team", "a.example/team/x:1", True),
    ("a.example/team", "a.example/team:1", True),
    ("a.example/team", "a.example/teams/x:1", False),
    ("*.example", "a.example/x:1", True),
    ("*.example", "b.a.example/x:1", True),
    ("*.example", "example/x:1", False),
    ("*.example", "a.example.org/x:1", False),
    ("*.example", "z.org/a.example/x:1", False),
    ("docker.io/library", "docker.io/library/debian:12", True),
]


EXACT_TABLE = [
    ("a.example/x:1", "a.example/x:1", True),
    ("a.example/x:1", "a.example/x:10", False),
    (f"a.example/x@{DIGEST}", f"a.example/x@{DIGEST}", True),
]


@pytest.mark.parametrize(("prefix", "name", "expected"), PREFIX_TABLE + EXACT_TABLE)
def test_what_a_prefix_stands_for(prefix: str, name: str, expected: bool) -> None:
    """tests/engines/test_registry.py asks skopeo the same, but for tags and digests, which it does not look at."""
    blocking = conf(blocked(prefix))
    if not expected:
        assert blocking.hosts_of(Reference.parse(name), own_trust) is None
        return
    with pytest.raises(UserError, match=r"must not be used on this host: registries.conf blocks"):
        blocking.hosts_of(Reference.parse(name), own_trust)


def test_blocked_is_what_takes_the_place_too() -> None:
    text = rule(prefix="a.example", location="b.example") + rule(location="b.example/secret", blocked=True)
    assert places(text, "a.example/x:1") == ["b.example/x"]
    with pytest.raises(
        UserError, match=r"a\.example/secret/x:1 must not be used on this host: .* blocks b\.example/secret"
    ):
        places(text, "a.example/secret/x:1")
    with pytest.raises(UserError, match=r"blocks a\.example"):
        places(rule(prefix="a.example", location="b.example", blocked=True), "a.example/x:1")
    mirrored = rule(location="a.example") + "[[registry.mirror]]\nlocation = 'b.example/secret'\n"
    assert places(mirrored + rule(location="b.example", blocked=True), "a.example/x:1") == []


def test_longest_prefix_counts() -> None:
    text = rule(prefix="*.example", blocked=True) + rule(prefix="a.example/team", location="b.org")
    assert places(text, "a.example/team/x:1") == ["b.org/x"]
    with pytest.raises(UserError, match=r"blocks \*\.example"):
        conf(text).hosts_of(Reference.parse("a.example/other/x:1"), own_trust)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (rule(location="a.example"), "a.example/x:1", []),
        (rule(prefix="a.example", location="b.example/deep"), "a.example/team/x:1", ["b.example/deep/team/x"]),
        (rule(prefix="a.example/team/", location="b.example:5000/"), "a.example/team/x:1", ["b.example:5000/x"]),
        (rule(prefix="a.example/x", location="b.example/y"), f"a.example/x@{DIGEST}", ["b.example/y"]),
        (rule(prefix="*.example", location="all.org/cache"), "b.a.example/x:1", ["all.org/cache/x"]),
        (rule(prefix="b.example", location="docker.io"), "b.example/debian:12", ["docker.io/library/debian"]),
        (rule(prefix="*.example") + "[[registry.mirror]]\nlocation = 'm.org'", "a.example/x:1", ["m.org/x"]),
    ],
)
def test_what_takes_the_place_of_a_prefix(text: str, name: str, expected: list[str]) -> None:
    assert places(text, name) == expected


def test_hub_is_asked_at_its_server() -> None:
    found = config(rule(prefix="b.example", location="docker.io"), "b.example/debian:12").server
    assert found is not None
    assert (found.api, found.is_insecure) == ("https://registry-1.docker.io/v2", False)


MIRRORS = """[[registry]]
location = 'a.example'
[[registry.mirror]]
location = 'all.org'
insecure = true
[[registry.mirror]]
location = 'digests.own/cache'
pull-from-mirror = 'digest-only'
[[registry.mirror]]
location = 'tags.org'
pull-from-mirror = 'tag-only'
"""


def test_mirrors_by_tag_and_by_digest() -> None:
    assert places(MIRRORS, "a.example/x:1") == ["all.org/x", "tags.org/x"]
    assert places(MIRRORS, f"a.example/x@{DIGEST}") == ["all.org/x", "digests.own/cache/x"]
    digests = MIRRORS.replace("pull-from-mirror", "other").replace(
        "location = 'a.example'", "location = 'a.example'\nmirror-by-digest-only = true"
    )
    assert places(digests, "a.example/x:1") == []
    assert len(places(digests, f"a.example/x@{DIGEST}")) == 3
    found = config(MIRRORS, f"a.example/x@{DIGEST}").mirrors
    assert [one.is_insecure for one in found] == [True, False]
    assert [one.trust.ca_files for one in found] == [(), (Path("digests.own"),)]


def test_insecure_is_said_of_one_place() -> None:
    found = config(rule(location="a.example", insecure=True), "a.example/x:1")
    assert (found.is_insecure, found.server) == (True, None)
    found = config(rule(prefix="a.example", location="b.example", insecure=True), "a.example/x:1")
    assert found.server is not None
    assert found.server.is_insecure


def test_prefix_with_a_tag_is_not_asked_elsewhere() -> None:
    with pytest.raises(UserError, match="which has a tag or digest in its name"):
        places(rule(prefix="a.example/x:1", location="b.example/x:2"), "a.example/x:1")
    with pytest.raises(UserError, match="a wrong image name"):
        places(rule(prefix="a.example", location="b.example/UPPER"), "a.example/x:1")


ALIASES = """unqualified-search-registries = ['one.example', 'two.example']
[aliases]
app = 'a.example/team/app'
'b/c' = 'd.example/c'
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("app", ("a.example/team/app",)),
        ("app:1", ("a.example/team/app:1",)),
        (f"app@{DIGEST}", (f"a.example/team/app@{DIGEST}",)),
        ("b/c:2*", ("d.example/c:2*",)),
        ("a.example/app", ("a.example/app",)),
        ("localhost/app", ("localhost/app",)),
        ("host:5000/app:1", ("host:5000/app:1",)),
        ("team/app:1", ("one.example/team/app:1", "two.example/team/app:1")),
    ],
)
def test_short_names(name: str, expected: tuple[str, ...]) -> None:
    assert conf("short-name-mode = 'permissive'\n" + ALIASES).names(name) == expected


def test_short_name_that_may_be_several_is_refused_unless_they_may_be_tried() -> None:
    with pytest.raises(UserError, match="'app2:1' has no registry in front") as caught:
        conf(ALIASES).names("app2:1")
    assert caught.value.hint == "Say which: one.example/app2:1, two.example/app2:1"
    assert conf("unqualified-search-registries = ['one.example']").names("app2:1") == ("one.example/app2:1",)
    assert conf("").names("app2:1") == (), "podman refuses it too"


def test_files_that_follow() -> None:
    first = rule(location="a.example", blocked=True) + rule(location="b.example", blocked=True)
    both = conf(
        "unqualified-search-registries = ['one.example']\nshort-name-mode = 'enforcing'\n"
        + first
        + "[aliases]\nx = 'a.example/x'\ny = 'a.example/y'",
        rule(location="a.example") + "[aliases]\nx = ''\nz = 'a.example/z'",
        "unqualified-search-registries = ['two.example']\nshort-name-mode = 'disabled'",
    )
    assert (both.search, both.mode) == (("two.example",), "disabled")
    assert both.aliases == {"y": "a.example/y", "z": "a.example/z"}
    assert both.rule_of(Reference.parse("a.example/x:1")) is not None
    with pytest.raises(UserError, match="blocks b"):
        both.hosts_of(Reference.parse("b.example/x:1"), own_trust)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[registries.search]\nregistries = ['a.example']", "form of version 1"),
        ("= broken", "registries.conf is wrong"),
        ("registry = 3", "'registry' is not a list of tables"),
        ("[[registry]]\nblocked = true", "has no 'location'"),
        ("[[registry]]\nprefix = 'a.example'", "'a.example' has no 'location'"),
        ("[[registry]]\nlocation = 'https://a.example'", "a scheme does not belong there"),
        ("[[registry]]\nlocation = 'a.*.example'", "not at its beginning"),
        ("[[registry]]\nlocation = 'a'\nblocked = 'yes'", "'blocked' is not true or false"),
        ("[[registry]]\nlocation = 3", "'location' is not a text"),
        ("[[registry]]\nlocation = 'a'\n[[registry.mirror]]\ninsecure = true", "mirror.. has no 'location'"),
        ("[[registry]]\nlocation = 'a'\n[[registry.mirror]]\nlocation = 'b'\npull-from-mirror = 'x'", "is 'x'"),
        ("unqualified-search-registries = ['a b']", "not a list of registries"),
        ("short-name-mode = 'x'", "known are enforcing"),
        ("[aliases]\nx = 'app'", "the alias 'x' is not the full name"),
        ("[aliases]\nx = 'a.example/app:1'", "the alias 'x' is not the full name"),
        ("aliases = 3", "'aliases' is not a table"),
    ],
)
def test_bad_files_are_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        conf(text)


def test_what_is_meant_for_others_is_left_alone() -> None:
    assert conf("credential-helpers = ['x']\nadditional-layer-store-auth-helper = 'y'") == NO_REGISTRIES_CONF
