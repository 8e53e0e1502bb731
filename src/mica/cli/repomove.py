"""`mica repo move`: a repository into another storage."""

import sys
from typing import Annotated

import typer

from mica.cli.bars import progress
from mica.cli.options import (
    ConfigOption,
    FqrnArgument,
    JsonOption,
    S3AddressingOption,
    S3CredentialsOption,
    S3EndpointOption,
    S3RegionOption,
    StateOption,
    s3_options,
)
from mica.cli.printing import print_facts, print_json
from mica.cli.queues import opened_queue


def move(
    fqrn: FqrnArgument,
    storage: Annotated[str, typer.Argument(help="Directory, or s3://BUCKET/PREFIX in a bucket of S3.")],
    state: StateOption,
    s3_endpoint: S3EndpointOption = "",
    s3_region: S3RegionOption = "",
    s3_addressing: S3AddressingOption = "path",
    s3_credentials: S3CredentialsOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a repository into another storage and publish there from then on. The old storage stays. Called again, it
    goes on where it stopped."""
    from mica.publish.moving import move_repository
    from mica.store.opening import parse_storage

    options = s3_options(s3_endpoint, s3_region, s3_addressing, s3_credentials)
    target = parse_storage(storage)
    with progress(f"Move {fqrn}") as done:
        moved = move_repository(state, fqrn, target, options, progress=done)
    with opened_queue(config) as queue:
        if queue is not None:
            # Their objects may be in the old storage only; whoever waits for one asks for it again.
            queue.layers.forget(fqrn)
    facts = {
        "repository": fqrn, "revision": moved.head.revision, "storage": moved.new_storage,
        "old_storage": moved.old_storage, "copied_objects": moved.copied_objects, "copied_bytes": moved.copied_bytes,
        "present_objects": moved.present_objects,
    }  # fmt: skip
    if as_json:
        print_json(facts)
        return
    print_facts(facts)
    sys.stderr.write(
        f"mica: {moved.old_storage} stays as it was, and gets no new revisions. When the web server shows"
        f" {moved.new_storage} and no reader uses the old one, remove it. Release managers on other machines need the"
        " new repository.toml.\n"
    )
