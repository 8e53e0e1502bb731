"""`registries.conf`, version 2: where Podman, Buildah, CRI-O and Skopeo look for images. Pure; any thread.

    unqualified-search-registries = ["registry.example.org", "docker.io"]
    short-name-mode = "permissive"                # enforcing (or not given): one search registry, or the full name
    [[registry]]
    prefix = "registry.example.org/team"          # a registry, what is below it, or *.example.org; the longest counts
    location = "other.example.org/team"           # what takes its place when something is pulled; default: the prefix
    insecure = true                               # plain HTTP, and certificates that no CA signed
    blocked = true
    mirror-by-digest-only = true
    [[registry.mirror]]                           # asked first, in this order
    location = "mirror.example.org/team"
    insecure = true
    pull-from-mirror = "all"                      # digest-only, tag-only
    [aliases]
    "app" = "registry.example.org/team/app"

https://github.com/containers/image/blob/main/docs/containers-registries.conf.5.md. Files of a drop-in directory follow
in the order of their names: a `[[registry]]` replaces an earlier one with the same prefix, an alias an earlier one of
the same name, and an empty alias removes it. Keys that are not above are for other programs.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mica.errors import UserError, explain_parse_error
from mica.oci.endpoints import PULL_USES, Endpoint, HostConfig, endpoint_of
from mica.oci.reference import Reference, has_registry, is_registry
from mica.oci.transport import Trust

_PULLS = frozenset({"all", "digest-only", "tag-only"})
_MODES = frozenset({"", "enforcing", "permissive", "disabled"})
_OLD_FORM = "registries"


@dataclass(frozen=True, slots=True)
class Mirror:
    """`pulls`: all, digest-only, tag-only."""

    location: str
    is_insecure: bool = False
    pulls: str = "all"


@dataclass(frozen=True, slots=True)
class RegistryRule:
    """One `[[registry]]`. With an empty `location` names with the prefix stay as they are."""

    prefix: str
    location: str = ""
    is_insecure: bool = False
    is_blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()

    def match(self, text: str) -> int:
        """Length of the beginning of an image's name that the prefix matches; 0 if it does not match."""
        if self.prefix.startswith("*."):
            end = text.partition("/")[0].find(self.prefix[1:]) + len(self.prefix) - 1
            found = end >= len(self.prefix) - 1
        else:
            end, found = len(self.prefix), text.startswith(self.prefix)
        return end if found and text[end : end + 1] in {"", ":", "/", "@"} else 0


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """All files together."""

    search: tuple[str, ...] = ()
    mode: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    rules: tuple[RegistryRule, ...] = ()

    def followed_by(self, later: "RegistriesConf") -> "RegistriesConf":
        """These settings and those of a file that is read later."""
        prefixes = {rule.prefix for rule in later.rules}
        kept = tuple(rule for rule in self.rules if rule.prefix not in prefixes)
        aliases = {name: target for name, target in (dict(self.aliases) | dict(later.aliases)).items() if target}
        return RegistriesConf(later.search or self.search, later.mode or self.mode, aliases, kept + later.rules)

    def rule_of(self, reference: Reference) -> RegistryRule | None:
        """The one with the longest prefix."""
        found = [rule for rule in self.rules if rule.match(reference.text)]
        return max(found, key=lambda one: len(one.prefix), default=None)

    def hosts_of(self, reference: Reference, trust_of: Callable[[str], Trust | None]) -> HostConfig | None:
        """The places that an image is pulled from; None if no rule matches.

        Raises UserError for an image that is blocked, under its own name or under the rewritten one, and for a rule
        that does not give an image name.
        """
        rule = self.rule_of(reference)
        if rule is None:
            return None
        _refuse_blocked(rule, reference)
        mirrors = []
        for mirror in rule.mirrors:
            if mirror.pulls == "all" or (mirror.pulls == "digest-only") == (reference.digest is not None):
                there = _rewritten(rule, mirror.location, reference)
                found = self.rule_of(there)
                if found is None or not found.is_blocked:
                    mirrors.append(_endpoint(there, trust_of, is_insecure=mirror.is_insecure))
        trust = trust_of(reference.registry)
        if not rule.location or rule.location == rule.prefix:
            return HostConfig(tuple(mirrors), trust=trust, is_insecure=rule.is_insecure)
        there = _rewritten(rule, rule.location, reference)
        _refuse_blocked(self.rule_of(there), reference)
        server = _endpoint(there, trust_of, is_insecure=rule.is_insecure)
        return HostConfig(tuple(mirrors), server, trust, rule.is_insecure)

    def names(self, text: str) -> tuple[str, ...]:
        """The images that a name as people write it may stand for, in the order of preference. A name with a registry
        stands for itself; a short name that is in no file stands for nothing.

        Raises UserError for a name that may stand for several, unless the mode allows to try them.
        """
        if has_registry(text):
            return (text,)
        name, separator, version = _split_version(text)
        if name in self.aliases:
            return (f"{self.aliases[name]}{separator}{version}",)
        names = tuple(f"{registry}/{text}" for registry in self.search)
        if len(names) > 1 and self.mode not in {"permissive", "disabled"}:
            raise UserError(f"{text!r} has no registry in front.", hint=f"Say which: {', '.join(names)}")
        return names


NO_REGISTRIES_CONF = RegistriesConf()


def _refuse_blocked(rule: RegistryRule | None, reference: Reference) -> None:
    if rule is not None and rule.is_blocked:
        raise UserError(f"{reference} must not be used on this host: registries.conf blocks {rule.prefix}.")


def _endpoint(there: Reference, trust_of: Callable[[str], Trust | None], *, is_insecure: bool) -> Endpoint:
    trust = trust_of(there.registry)
    return endpoint_of(there.registry, there.repository, trust=trust, uses=PULL_USES, is_insecure=is_insecure)


def _rewritten(rule: RegistryRule, location: str, reference: Reference) -> Reference:
    """The name with the location instead of the prefix."""
    length = rule.match(reference.text)
    if length > len(reference.name):
        raise UserError(
            f"registries.conf has a location for {rule.prefix}, which has a tag or digest in its name.",
            hint="A prefix is a registry, a namespace in it or a repository.",
        )
    try:
        there = Reference.parse(f"{location}{reference.name[length:]}")
    except UserError as error:
        raise UserError(f"registries.conf turns {reference} into a wrong image name: {error}") from error
    return Reference(there.registry, there.repository, reference.tag, reference.digest)


def parse_registries_conf(data: bytes, *, what: str) -> RegistriesConf:
    """Read one file. Raises UserError naming `what` and the first thing wrong with it."""
    try:
        return _conf_from(tomllib.loads(data.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is wrong: {explain_parse_error(error)}.") from error


def _conf_from(document: dict[str, Any]) -> RegistriesConf:
    if _OLD_FORM in document:
        raise ValueError("it has the form of version 1, with [registries.…]; version 2 has [[registry]]")
    mode = _text(document, "short-name-mode")
    if mode not in _MODES:
        raise ValueError(f"'short-name-mode' is {mode[:40]!r}; known are enforcing, permissive, disabled")
    search = document.get("unqualified-search-registries", [])
    if not isinstance(search, list) or not all(isinstance(one, str) and is_registry(one) for one in search):
        raise ValueError("'unqualified-search-registries' is not a list of registries")
    aliases = document.get("aliases", {})
    if not isinstance(aliases, dict):
        raise ValueError("'aliases' is not a table")
    return RegistriesConf(
        tuple(search),
        mode,
        {name: _alias(aliases, name) for name in aliases},
        tuple(_rule(table) for table in _tables(document, "registry")),
    )


def _alias(aliases: dict[str, Any], name: str) -> str:
    """The full name without a tag; empty to remove an alias."""
    target = _text(aliases, name)
    registry, slash, _ = target.partition("/")
    if target and (not slash or not is_registry(registry) or "@" in target or _split_version(target)[1]):
        raise ValueError(f"the alias {name[:80]!r} is not the full name of a repository: {target[:200]!r}")
    return target


def _rule(table: dict[str, Any]) -> RegistryRule:
    prefix, location = _place(table, "prefix"), _place(table, "location")
    if not location and not prefix.startswith("*."):
        raise ValueError(f"[[registry]] {prefix!r} has no 'location'")
    if "*" in prefix.removeprefix("*.") or "*" in location:
        raise ValueError(f"[[registry]] {prefix or location!r} has a * that is not at its beginning")
    digest_only = _flag(table, "mirror-by-digest-only")
    mirrors = tuple(_mirror(one, digest_only=digest_only) for one in _tables(table, "mirror"))
    return RegistryRule(prefix or location, location, _flag(table, "insecure"), _flag(table, "blocked"), mirrors)


def _mirror(table: dict[str, Any], *, digest_only: bool) -> Mirror:
    location, pulls = _place(table, "location"), _text(table, "pull-from-mirror")
    if not location or "*" in location:
        raise ValueError("a [[registry.mirror]] has no 'location'")
    if pulls and (pulls not in _PULLS or digest_only):
        raise ValueError(f"'pull-from-mirror' of {location} is {pulls[:40]!r}, or stands beside mirror-by-digest-only")
    return Mirror(location, _flag(table, "insecure"), "digest-only" if digest_only else pulls or "all")


def _place(table: dict[str, Any], name: str) -> str:
    text = _text(table, name).rstrip("/")
    if "://" in text:
        raise ValueError(f"{name!r} is {text[:200]!r}; a scheme does not belong there")
    return text


def _tables(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = document.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"{name!r} is not a list of tables")
    return value


def _text(table: dict[str, Any], name: str) -> str:
    value = table.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name[:80]!r} is not a text")
    return value


def _flag(table: dict[str, Any], name: str) -> bool:
    value = table.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{name!r} is not true or false")
    return value


def _split_version(text: str) -> tuple[str, str, str]:
    """Name, separator and tag or digest."""
    name, at, digest = text.partition("@")
    if at:
        return name, at, digest
    head, colon, tag = text.rpartition(":")
    return (head, colon, tag) if colon and "/" not in tag else (text, "", "")
