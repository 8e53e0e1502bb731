"""`mica cache …`: shows what is cached on this host, makes room, and checks the content."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.commands import Commands
from mica.cli.options import CacheOption, ConfigOption, JsonOption, QuotaOption, StateOption
from mica.errors import IntegrityError, NotFoundError, UsageError, UserError

if TYPE_CHECKING:
    from mica.cache.cache import Cache
    from mica.cli.places import Places
    from mica.fetch.cachecheck import Verifier

_UNLIMITED = 1 << 63
app = typer.Typer(cls=Commands, help="Show, prune and verify what is cached on this host.", no_args_is_help=True)


@app.command("ls", epilog="Example: mica cache ls --json")
def list_cache(
    state: StateOption,
    every: Annotated[bool, typer.Option("--all", help="Show every file, the last used first.")] = False,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much of each kind is cached, how much is in use, and the limits.

    A file is in use while any process or the kernel has it open. The time of last use is the time when the file was
    last handed out or found in use; until then it is the time of its download.
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
        str | None, typer.Option(help="Size that the cache may have afterwards. Default: nine tenths of its quota.")
    ] = None,
    older_than: Annotated[str | None, typer.Option(help="Remove only files unused for this long, such as 7d.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    fresh_s: Annotated[
        float | None,
        typer.Option(
            "--fresh-s", help="Keep files that were downloaded in the last N seconds. Default: 10, images 900."
        ),
    ] = None,
    quota: QuotaOption = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the files that were not used for the longest time; files in use stay.

    --quota also sets the limit from now on; `--quota none` ends the limit and removes no file. The exit code is 1 if
    the cache cannot be made as small as --to says.
    """
    from mica.cli.cachereport import show_eviction

    with _opened(state, config, cache, fresh_s, None if dry_run else quota) as (_, store):
        age_s = None if older_than is None else _age(older_than)
        to_bytes = _goal(store, to, quota) if to is not None or age_s is None else None
        outcome = store.quota.sweeper.prune(to_bytes, age_s, rehearse=dry_run)
        taken = store.quota.account().taken - (outcome.freed_bytes if dry_run else 0)
    show_eviction(outcome, taken, dry_run=dry_run, as_json=as_json)
    if to_bytes is not None and age_s is None and taken > to_bytes:
        raise UserError(
            "The cache cannot be made as small as that now.",
            hint="The files that are left are in use or were downloaded just now.",
        )


@app.command(epilog="Example: mica cache verify --repair")
def verify(
    state: StateOption,
    repair: Annotated[bool, typer.Option("--repair", help="Remove wrong files; they are fetched again.")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Compare files that cannot be proved here with those of the servers.")
    ] = False,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every cached file: its name, its size, its content, and that the files that belong to it are there.

    Content is proved by compressing it again: the result must have the digest in the name. Content that was compressed
    by a program unknown to mica cannot be proved in this way. The exit code is 3 if anything is wrong, even if it was
    repaired.
    """
    from mica.cli.bars import progress
    from mica.cli.cachereport import Verification

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
    state: Path, config: Path | None, cache: Path | None, fresh_s: float | None = None, quota: str | None = None
) -> Iterator[tuple["Places", "Cache"]]:
    """Raises NotFoundError instead of making one."""
    from mica.cache.cache import Cache
    from mica.cache.inventory import Kind
    from mica.cli.places import Places

    places = Places(state, config=config, cache=cache, quota=quota)
    if not (places.cache_path / "objects").is_dir():
        raise NotFoundError(f"There is no cache in {places.cache_path}.", hint="Name another with --cache.")
    with Cache(places.cache, fresh_s=None if fresh_s is None else dict.fromkeys(Kind, fresh_s)) as store:
        yield places, store


@contextlib.contextmanager
def _verifier(places: "Places", store: "Cache", *, fetch: bool) -> Iterator["Verifier"]:
    from mica.fetch.cachecheck import Verifier
    from mica.fetch.location import open_fetcher

    with contextlib.ExitStack() as stack:
        names = places.known if fetch else []
        fetchers = [stack.enter_context(open_fetcher(places.locate(name), places.counter)) for name in names]
        yield Verifier(store.root, fetchers)


def _goal(store: "Cache", to: str | None, quota: str | None) -> int:
    from mica.cli.places import parse_quota_option
    from mica.sizes import parse_size

    if to is None:
        most = store.quota.limits.most if quota is None else parse_quota_option(quota)
        if not most and quota is None:
            raise UsageError(
                "The cache has no quota, so the size to prune to is not known.",
                hint="Give --to, --older-than or --quota.",
            )
        return most * 9 // 10 if most else _UNLIMITED
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
