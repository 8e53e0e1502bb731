"""Settings of one repository for its release manager, in `<state>/repositories/<fqrn>/repository.toml`.

    repository.toml     this file's content
    keys/               <fqrn>.masterkey .pub .key .crt, mode 0400, unless they live elsewhere
    lock                held by the process that publishes
    work/               catalogs being edited; emptied when a transaction begins
    reflog.chksum       digest of the reflog as last published

Parsing and formatting only, besides the two functions that read and write the file. Any thread.
"""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mica.digest import Algorithm
from mica.errors import NotFoundError, UserError, explain_parse_error
from mica.files import mapped_os_errors, replace_file
from mica.publish.rules import STANDARD_CATALOGS, STANDARD_OBJECTS, CatalogRules, ObjectRules
from mica.repo.catalog import DEFAULT_TTL_S
from mica.repo.cutting import FINE_RULE, ChunkRule
from mica.repo.objects import Compression
from mica.store.opening import parse_storage
from mica.store.s3access import ADDRESSING, NO_OPTIONS, SCHEME, S3Options

_FILE = "repository.toml"
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """`keep_revisions` counts the newest one. `keep_days`: how long others stay after they were replaced, and images
    and layers after nobody wanted them. `auto_tag_days`: the age at which automatic tags go; 0: they stay.
    `grace_days`: how long objects stay after they were stored, whatever needs them."""

    keep_revisions: int = 3
    keep_days: float = 14
    auto_tag_days: float = 90
    grace_days: float = 7


STANDARD_COLLECTION = CollectionSettings()


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """`storage`: where the published files are, as `store/opening.py` understands it. `keys`: directory of the four key
    files. `ttl_s`: seconds until clients ask for a newer revision. `urls`: where clients find the repository, in order
    of preference, if its owner has said so. `catalogs`: how large they become. `gc`: what garbage collection leaves
    alone. `s3`: of a storage on S3."""

    fqrn: str
    storage: str
    keys: Path
    objects: ObjectRules = STANDARD_OBJECTS
    ttl_s: int = DEFAULT_TTL_S
    auto_tag: bool = False
    garbage_collectable: bool = True
    urls: tuple[str, ...] = ()
    catalogs: CatalogRules = STANDARD_CATALOGS
    s3: S3Options = NO_OPTIONS
    gc: CollectionSettings = STANDARD_COLLECTION

    def key_path(self, kind: str) -> Path:
        """`kind` is masterkey, pub, key or crt."""
        return self.keys / f"{self.fqrn}.{kind}"


def format_settings(settings: RepositorySettings) -> str:
    rule = settings.objects.chunking
    values: dict[str, str | int | float | bool | list[str]] = {
        "fqrn": settings.fqrn,
        "storage": settings.storage,
        "keys": str(settings.keys),
        "hash": settings.objects.algorithm.config_name,
        "compression": settings.objects.compression.config_name,
        "chunk_min_bytes": rule.minimum,
        "chunk_avg_bytes": rule.average,
        "chunk_max_bytes": rule.maximum,
        "chunk_program_bytes": rule.program,
        "ttl_s": settings.ttl_s,
        "auto_tag": settings.auto_tag,
        "garbage_collectable": settings.garbage_collectable,
        "urls": list(settings.urls),
        "catalog_max_entries": settings.catalogs.most,
        "catalog_min_entries": settings.catalogs.fewest,
        "nested_catalog_limit": settings.catalogs.nested_limit,
        "root_catalog_limit": settings.catalogs.root_limit,
        "gc_keep_revisions": settings.gc.keep_revisions,
        "gc_keep_days": settings.gc.keep_days,
        "gc_auto_tag_days": settings.gc.auto_tag_days,
        "gc_grace_days": settings.gc.grace_days,
    }
    if settings.storage.startswith(SCHEME):
        values |= _format_s3(settings.s3)
    # JSON strings, numbers, booleans and lists of strings are TOML values too.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _format_s3(options: S3Options) -> dict[str, str | bool]:
    """What is empty is left out: then the variables of the environment count."""
    texts = {
        "s3_endpoint": options.endpoint,
        "s3_region": options.region,
        "s3_addressing": options.addressing,
        "s3_credentials": "" if options.credentials is None else str(options.credentials),
    }
    return {**{key: text for key, text in texts.items() if text}, "s3_conditions": options.has_conditions}


def _parse_s3(values: dict[str, Any]) -> S3Options:
    credentials = values.get("s3_credentials")
    addressing = str(values.get("s3_addressing", NO_OPTIONS.addressing))
    if addressing not in ADDRESSING:
        raise ValueError(f"s3_addressing is not one of {', '.join(ADDRESSING)}")
    return S3Options(
        endpoint=str(values.get("s3_endpoint", "")),
        region=str(values.get("s3_region", "")),
        addressing=addressing,
        credentials=None if credentials is None else Path(credentials),
        has_conditions=bool(values.get("s3_conditions", True)),
    )


def parse_settings(data: bytes, what: str) -> RepositorySettings:
    """Raises UserError naming `what`."""
    try:
        values = tomllib.loads(data.decode("utf-8"))
        return _settings_from(values)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{what} is not a valid repository setting: {explain_parse_error(error)}.") from error


def _settings_from(values: dict[str, Any]) -> RepositorySettings:
    algorithms = {algorithm.config_name: algorithm for algorithm in Algorithm}
    compressions = {compression.config_name: compression for compression in Compression}
    rule = ChunkRule(
        int(values.get("chunk_min_bytes", FINE_RULE.minimum)),
        int(values.get("chunk_avg_bytes", FINE_RULE.average)),
        int(values.get("chunk_max_bytes", FINE_RULE.maximum)),
        # Older settings have no size for programs, which were then cut as all other files.
        int(values.get("chunk_program_bytes", 0 if "chunk_min_bytes" in values else FINE_RULE.program)),
    )
    return RepositorySettings(
        fqrn=str(values["fqrn"]),
        storage=parse_storage(str(values["storage"])),
        keys=Path(values["keys"]),
        objects=ObjectRules(
            algorithms[values.get("hash", "sha1")], compressions[values.get("compression", "zlib")], rule
        ),
        ttl_s=int(values.get("ttl_s", DEFAULT_TTL_S)),
        auto_tag=bool(values.get("auto_tag", False)),
        garbage_collectable=bool(values.get("garbage_collectable", True)),
        urls=tuple(map(str, values.get("urls", []))),
        catalogs=CatalogRules(
            int(values.get("catalog_max_entries", STANDARD_CATALOGS.most)),
            int(values.get("catalog_min_entries", STANDARD_CATALOGS.fewest)),
            int(values.get("nested_catalog_limit", STANDARD_CATALOGS.nested_limit)),
            int(values.get("root_catalog_limit", STANDARD_CATALOGS.root_limit)),
        ),
        s3=_parse_s3(values),
        gc=CollectionSettings(
            _number(values, "gc_keep_revisions", STANDARD_COLLECTION.keep_revisions, int),
            _number(values, "gc_keep_days", STANDARD_COLLECTION.keep_days, float),
            _number(values, "gc_auto_tag_days", STANDARD_COLLECTION.auto_tag_days, float),
            _number(values, "gc_grace_days", STANDARD_COLLECTION.grace_days, float),
        ),
    )


def _number(values: dict[str, Any], name: str, default: _Number, kind: Callable[[Any], _Number]) -> _Number:
    number = kind(values.get(name, default))
    if not 0 <= number < 1e6:
        raise ValueError(f"{name} is {number}, which is not a number from 0 on")
    return number


def state_directory(state: Path, fqrn: str) -> Path:
    return state / "repositories" / fqrn


def published_here(state: Path) -> list[str]:
    """Names of the repositories with settings, sorted."""
    return sorted(path.parent.name for path in (state / "repositories").glob(f"*/{_FILE}"))


def read_settings(state: Path, fqrn: str) -> RepositorySettings:
    path = state_directory(state, fqrn) / _FILE
    with mapped_os_errors(f"read the settings of {fqrn}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            known = published_here(state)
            hint = f"Known here: {', '.join(known)}." if known else f"Create it: mica repo create {fqrn} --storage DIR"
            raise NotFoundError(f"There is no repository {fqrn} under {state}.", hint=hint) from error
    return parse_settings(data, str(path))


def write_settings(state: Path, settings: RepositorySettings) -> None:
    with mapped_os_errors(f"write the settings of {settings.fqrn}"):
        replace_file(
            state_directory(state, settings.fqrn) / _FILE, format_settings(settings).encode("utf-8"), mode=0o600
        )
