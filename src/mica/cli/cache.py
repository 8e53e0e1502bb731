"""`mica cache …`: what this host has of repositories, making room, and whether it is what it should be."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import CacheOption, ConfigOption, JsonOption, StateOption
from mica.errors import IntegrityError, NotFoundError, UsageError, UserError

if TYPE_CHECKING:
    from mica.cli.places import Places
    from mica.fetch.cache import Cache
    from mica.fetch.verify import Verifier

app = typer.Typer(help="Show, prune and verify what is cached on this host.", no_args_is_help=True)


@app.command("ls", epilog="Example: mica cache ls --json")
def list_cache(
    state: StateOption,
    every: Annotated[bool, typer.Option("--all", help="Every file, the last used first.")] = False,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is cached: how much of what, what is in use, and the limits.

    In use is what anybody has open, a container or the kernel for one. The time of last use is known of files that were
    handed out or found in use; of others it is when they came.
    """
    from mica.cli.cachereport import CacheReport

    with _opened(state, config, cache) as (_, store):
        with store.quota.sweeper.alone():
            inventory, held_bytes = store.quota.sweeper.count()
        CacheReport(store.root, store.quota.limits, inventory, held_bytes).show(every=every, as_json=as_json)


@app.command(epilog="Example: mica cache prune --to 10G --dry-run")
def prune(
    state: StateOption,
    to: Annotated[
        str | None, typer.Option(help="Until the cache takes so much, such as 10G. Default: nine tenths of its quota.")
    ] = None,
    older_than: Annotated[str | None, typer.Option(help="Only what was not used for so long, such as 7d.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    fresh_s: Annotated[
        float | None, typer.Option("--fresh-s", help="Leave what came in the last seconds. Default: 10, images 900.")
    ] = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what was not used for the longest time; what is in use stays.

    The exit code is 1 if less could be removed than --to asks for.
    """
    from mica.cli.cachereport import show_eviction

    with _opened(state, config, cache, fresh_s) as (_, store):
        age_s = None if older_than is None else _age(older_than)
        to_bytes = _goal(store, to) if to is not None or age_s is None else None
        outcome = store.quota.sweeper.prune(to_bytes, age_s, rehearse=dry_run)
        taken = store.quota.account().taken - (outcome.freed_bytes if dry_run else 0)
    show_eviction(outcome, taken, dry_run=dry_run, as_json=as_json)
    if to_bytes is not None and age_s is None and taken > to_bytes:
        raise UserError(
            "The cache cannot be made as small as that now.", hint="What is left is in use or came just now."
        )


@app.command(epilog="Example: mica cache verify --repair")
def verify(
    state: StateOption,
    repair: Annotated[bool, typer.Option("--repair", help="Remove what is wrong; it is fetched again.")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Compare what cannot be proved here with what the servers have.")
    ] = False,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every cached file: name, size, content, and that what belongs together is there.

    Content is proved by compressing it again, which gives the digest in its name. What was compressed by a program that
    is not known here cannot be proved so. The exit code is 3 if anything is wrong, repaired or not.
    """
    from mica.cli.cachereport import Verification
    from mica.cli.output import progress

    with _opened(state, config, cache) as (places, store):
        with store.quota.sweeper.alone():
            inventory, _ = store.quota.sweeper.count()
        result = Verification()
        with _verifier(places, store, fetch=fetch) as verifier, progress("Verify", inventory.size) as done:
            for finding in verifier.verify(inventory):
                result.add(finding)
                done(finding.item.size)
        if repair:
            result.repair(store)
    result.show(as_json=as_json)
    if result.wrong:
        raise typer.Exit(IntegrityError.exit_code)


@contextlib.contextmanager
def _opened(
    state: Path, config: Path | None, cache: Path | None, fresh_s: float | None = None
) -> Iterator[tuple["Places", "Cache"]]:
    """Raises NotFoundError instead of making one."""
    from mica.cli.places import Places
    from mica.fetch.cache import Cache
    from mica.fetch.inventory import Kind

    places = Places(state, config=config, cache=cache)
    if not (places.cache_path / "objects").is_dir():
        raise NotFoundError(f"There is no cache in {places.cache_path}.", hint="Name another with --cache.")
    with Cache(places.cache, fresh_s=None if fresh_s is None else dict.fromkeys(Kind, fresh_s)) as store:
        yield places, store


@contextlib.contextmanager
def _verifier(places: "Places", store: "Cache", *, fetch: bool) -> Iterator["Verifier"]:
    from mica.fetch.location import open_fetcher
    from mica.fetch.verify import Verifier

    with contextlib.ExitStack() as stack:
        names = places.known if fetch else []
        fetchers = [stack.enter_context(open_fetcher(places.locate(name), places.counter)) for name in names]
        yield Verifier(store.root, fetchers)


def _goal(store: "Cache", to: str | None) -> int:
    from mica.sizes import parse_size

    if to is None:
        quota = store.quota.limits.most
        if not quota:
            raise UsageError("The cache has no quota to go by.", hint="Give --to or --older-than.")
        return quota * 9 // 10
    try:
        return parse_size(to)
    except ValueError as error:
        raise UsageError(f"--to: {error}.") from error


def _age(text: str) -> int:
    from mica.sizes import parse_age

    try:
        return parse_age(text)
    except ValueError as error:
        raise UsageError(f"--older-than: {error}.") from error
