"""What a release manager knows of one repository, kept in `<state>/repositories/<fqrn>/repository.toml`.

    repository.toml     this file's content
    keys/               <fqrn>.masterkey .pub .key .crt, mode 0400, unless they live elsewhere
    lock                held by whoever publishes
    work/               catalogs being edited; emptied when a transaction begins
    reflog.chksum       digest of the reflog as last published

Parsing and formatting only, besides the two functions that read and write the file. Any thread.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mica.digest import Algorithm
from mica.errors import NotFoundError, UserError
from mica.files import mapped_os_errors, replace_file
from mica.publish.objectwriter import STANDARD_OBJECTS, ObjectRules
from mica.repo.catalog import DEFAULT_TTL_S
from mica.repo.chunking import FINE_RULE, ChunkRule
from mica.repo.objects import Compression

_FILE = "repository.toml"


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """`storage`: directory of the published files. `keys`: directory of the four key files. `ttl_s`: how long clients
    may go without asking for a newer revision."""

    fqrn: str
    storage: Path
    keys: Path
    objects: ObjectRules = STANDARD_OBJECTS
    ttl_s: int = DEFAULT_TTL_S
    auto_tag: bool = False
    garbage_collectable: bool = True

    def key_path(self, kind: str) -> Path:
        """`kind` is masterkey, pub, key or crt."""
        return self.keys / f"{self.fqrn}.{kind}"


def format_settings(settings: RepositorySettings) -> str:
    rule = settings.objects.chunking
    values: dict[str, str | int | bool] = {
        "fqrn": settings.fqrn,
        "storage": str(settings.storage),
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
    }
    # JSON strings, numbers and booleans are TOML values too.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def parse_settings(data: bytes, what: str) -> RepositorySettings:
    """Raises UserError naming `what`."""
    try:
        values = tomllib.loads(data.decode("utf-8"))
        return _settings_from(values)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{what} is not a valid repository setting ({error}).") from error


def _settings_from(values: dict[str, Any]) -> RepositorySettings:
    algorithms = {algorithm.config_name: algorithm for algorithm in Algorithm}
    compressions = {compression.config_name: compression for compression in Compression}
    rule = ChunkRule(
        int(values.get("chunk_min_bytes", FINE_RULE.minimum)),
        int(values.get("chunk_avg_bytes", FINE_RULE.average)),
        int(values.get("chunk_max_bytes", FINE_RULE.maximum)),
        # Before there was a size for programs they were cut as all other files.
        int(values.get("chunk_program_bytes", 0 if "chunk_min_bytes" in values else FINE_RULE.program)),
    )
    return RepositorySettings(
        fqrn=str(values["fqrn"]),
        storage=Path(values["storage"]),
        keys=Path(values["keys"]),
        objects=ObjectRules(
            algorithms[values.get("hash", "sha1")], compressions[values.get("compression", "zlib")], rule
        ),
        ttl_s=int(values.get("ttl_s", DEFAULT_TTL_S)),
        auto_tag=bool(values.get("auto_tag", False)),
        garbage_collectable=bool(values.get("garbage_collectable", True)),
    )


def state_directory(state: Path, fqrn: str) -> Path:
    return state / "repositories" / fqrn


def read_settings(state: Path, fqrn: str) -> RepositorySettings:
    path = state_directory(state, fqrn) / _FILE
    with mapped_os_errors(f"read the settings of {fqrn}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            known = sorted(entry.name for entry in (state / "repositories").glob("*") if (entry / _FILE).exists())
            hint = f"Known here: {', '.join(known)}." if known else f"Create it: mica repo create {fqrn} --storage DIR"
            raise NotFoundError(f"There is no repository {fqrn} under {state}.", hint=hint) from error
    return parse_settings(data, str(path))


def write_settings(state: Path, settings: RepositorySettings) -> None:
    with mapped_os_errors(f"write the settings of {settings.fqrn}"):
        replace_file(
            state_directory(state, settings.fqrn) / _FILE, format_settings(settings).encode("utf-8"), mode=0o600
        )
