"""`mica repo replicate`: makes a copy of a repository elsewhere, and brings it up to date."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mica.cli.bars import progress
from mica.cli.options import (
    ConfigOption,
    JsonOption,
    KeyOption,
    ProxyOption,
    S3AddressingOption,
    S3CredentialsOption,
    S3EndpointOption,
    S3RegionOption,
    StateOption,
    s3_options,
)
from mica.cli.printing import print_facts, print_json
from mica.errors import UserError
from mica.sizes import format_size

_THREADS_MAX = 64


def replicate(
    url: Annotated[str, typer.Argument(help="URL of the root of the repository that is copied.")],
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="Directory that a web server publishes, or s3://BUCKET/PREFIX.")
    ],
    state: StateOption,
    name: Annotated[
        str | None, typer.Option("--name", help="The repository's name, if it is not the last part of the URL.")
    ] = None,
    more_urls: Annotated[
        list[str] | None, typer.Option("--url", help="URL of another server of the same, asked when the first fails.")
    ] = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    tags: Annotated[
        bool,
        typer.Option(
            "--tags/--no-tags", help="Also copy tagged revisions, and those published since the last replication."
        ),
    ] = True,
    threads: Annotated[
        int, typer.Option("--threads", min=1, max=_THREADS_MAX, help="Objects that are copied at the same time.")
    ] = 8,
    gc: Annotated[
        bool, typer.Option("--gc", help="Then remove what only revisions need that the source no longer has.")
    ] = False,
    accept_older: Annotated[
        bool, typer.Option("--accept-older", help="Also copy a revision that is older than the replica's.")
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Make a replica of a copy that was made by other means than a replication."),
    ] = False,
    s3_endpoint: S3EndpointOption = "",
    s3_region: S3RegionOption = "",
    s3_addressing: S3AddressingOption = "path",
    s3_credentials: S3CredentialsOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a repository, or what is new in it since the last time. Every object is verified on its way."""
    from mica.cli.places import Places
    from mica.collect.replica import collect_replica
    from mica.fetch.location import open_fetcher, read_blacklists, read_keys
    from mica.replicate.record import ReplicaHome
    from mica.replicate.replication import Replication, ReplicationRules
    from mica.store.opening import open_store, parse_storage, probe_storage

    fqrn = name or url.rstrip("/").rpartition("/")[2]
    places = Places(
        state, config=config, urls=[url, *(more_urls or [])], keys=keys, proxies=proxies,
        hint="Give its public key with --key, or add it to the configuration.",
    )  # fmt: skip
    storage = parse_storage(destination)
    s3 = s3_options(s3_endpoint, s3_region, s3_addressing, s3_credentials)
    _refuse_own_storage(state, storage)
    location = places.locate(fqrn)
    master_keys = read_keys(location)
    home = ReplicaHome(state, fqrn, storage)
    rules = ReplicationRules(tags=tags, accept_older=accept_older, take_over=take_over, threads=threads)
    with home.locked(), open_fetcher(location, places.counter) as fetcher, progress(f"Replicate {fqrn}") as done:
        record = home.read()
        known = None if record is None else record.has_conditions
        s3 = probe_storage(storage, s3) if known is None else replace(s3, has_conditions=known)
        with open_store(storage, s3) as store:
            report = Replication(
                fetcher, store, fqrn, master_keys, home, storage, rules=rules, blacklist=read_blacklists(location),
                progress=done, has_conditions=s3.has_conditions,
            ).run()  # fmt: skip
            collected = collect_replica(fetcher, store, home.work) if gc else None
        if collected is not None:
            home.write_reflog_checksum(collected.reflog_checksum)
    facts = {"repository": fqrn, "source": url, "destination": storage, **report._asdict()}
    if collected is not None:
        facts |= {
            "removed_revisions": collected.revisions, "removed_objects": collected.objects,
            "removed_bytes": collected.stored_bytes,
        }  # fmt: skip
    if as_json:
        print_json(facts)
        return
    facts["stored_bytes"] = format_size(report.stored_bytes)
    if collected is not None:
        facts["removed_bytes"] = format_size(collected.stored_bytes)
    if report.missing_tags:
        sys.stderr.write(f"mica: {len(report.missing_tags)} tags name revisions that the source no longer has\n")
    del facts["missing_tags"]
    print_facts(facts)


def _refuse_own_storage(state: Path, storage: str) -> None:
    """Raises UserError for the storage of a repository that is published on this host."""
    from mica.publish.settings import read_settings

    for path in (state / "repositories").glob("*/repository.toml"):
        if read_settings(state, path.parent.name).storage == storage:
            raise UserError(
                f"{storage} is the storage of {path.parent.name}, which is published here.",
                hint="A replica needs a place of its own.",
            )
