"""`mica sync`: makes a repository what a recipe says, once or in a loop."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mica.cli.options import (
    AuthfileOption,
    CertsOption,
    ConfigOption,
    InsecureOption,
    JobsOption,
    JsonOption,
    StateOption,
    WaitOption,
)
from mica.cli.printing import print_json, print_table, show_error

if TYPE_CHECKING:
    from mica.cli.registries import Access
    from mica.convert.converter import Platforms
    from mica.oci.session import RegistryOptions
    from mica.sync.recipe import Recipe
    from mica.sync.round import RoundResult

_DAY_S = 86400


def sync(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The wish list, a YAML file.")],
    state: StateOption,
    loop: Annotated[
        bool,
        typer.Option(
            "--loop",
            help="Repeat until SIGTERM or SIGINT; a second signal does not wait for the image at hand.",
        ),
    ] = False,
    interval_s: Annotated[float, typer.Option("--interval", min=1, help="Seconds between the rounds of a loop.")] = 600,
    check: Annotated[bool, typer.Option("--check", help="Only read the recipe and report what is wrong.")] = False,
    platform: Annotated[
        list[str] | None, typer.Option(help="Which images of an index, such as linux/amd64; several make an index.")
    ] = None,
    all_platforms: Annotated[bool, typer.Option("--all-platforms", help="All images of each index.")] = False,
    grace_days: Annotated[
        float, typer.Option(min=0, help="Days that an image and its layers stay after the image left the recipe.")
    ] = 30,
    accept_removals: Annotated[
        bool,
        typer.Option("--accept-removals", help="Remove images even if a list of tags has lost many at once."),
    ] = False,
    notify: Annotated[
        Path | None, typer.Option("--notify", "-n", help="File that gets a line of JSON for each event.")
    ] = None,
    jobs: JobsOption = 2,
    wait_s: WaitOption = 300,
    config: ConfigOption = None,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert the new and changed images of a wish list, push their thin images, remove images that left the list.

    A line that fails never stops the others: the summary names it, and the exit code is not 0. A loop begins only with
    a recipe that can be read; a round that fails later is reported and tried again.
    """
    from mica.cli.registries import Access
    from mica.signals import EndSignals

    access = Access(insecure, authfile, certs, config)
    settings = _Settings(
        state, access, _platforms(platform or [], every=all_platforms), int(grace_days * _DAY_S), notify, jobs, wait_s,
        accepts_removals=accept_removals,
    )  # fmt: skip
    if check:
        raise typer.Exit(_check(recipe))
    if not loop:
        raise typer.Exit(_one_round(recipe, settings, lambda: False, as_json=as_json, goes_on=False))
    _check_start(recipe, state)
    with EndSignals(second_ends=True) as end:
        while not end.has_come():
            _one_round(recipe, settings, end.has_come, as_json=as_json, goes_on=True)
            end.wait(interval_s)


class _Settings:
    """What all rounds have in common."""

    def __init__(
        self,
        state: Path,
        access: "Access",
        platforms: "Platforms",
        grace_s: int,
        notify: Path | None,
        jobs: int,
        wait_s: float,
        *,
        accepts_removals: bool,
    ) -> None:
        self.accepts_removals = accepts_removals
        self.state = state
        self.access = access
        self.platforms = platforms
        self.grace_s = grace_s
        self.notify = notify
        self.jobs = jobs
        self.wait_s = wait_s


def _one_round(
    path: Path, settings: _Settings, should_stop: Callable[[], bool], *, as_json: bool, goes_on: bool
) -> int:
    from mica.errors import MicaError

    try:
        recipe = _read(path)
        result = _run(path, recipe, settings, should_stop)
    except MicaError as error:
        if not goes_on:
            raise
        show_error(error)
        return error.exit_code
    _show(path, recipe, result, as_json=as_json)
    sys.stdout.flush()  # a loop may go on for days
    return result.exit_code


def _run(path: Path, recipe: "Recipe", settings: _Settings, should_stop: Callable[[], bool]) -> "RoundResult":
    from mica.cli.bars import LayerBars
    from mica.cli.queues import maker_of, opened_queue
    from mica.convert.converter import ConverterOptions
    from mica.convert.layerbuilder import DEFAULT_LIMITS
    from mica.files import locked
    from mica.publish.manager import ReleaseManager
    from mica.sync.round import SyncOptions, SyncRound
    from mica.sync.state import STATE_DIRECTORY, read_state, write_state

    with (
        opened_queue(settings.access.config) as queue,
        ReleaseManager.open(settings.state, recipe.fqrn) as manager,
        LayerBars() as bars,
    ):
        converter = ConverterOptions(
            settings.access.source_options(), jobs=settings.jobs, wait_s=settings.wait_s,
            open_maker=maker_of(queue, DEFAULT_LIMITS, jobs=settings.jobs),
        )  # fmt: skip
        options = SyncOptions(
            converter, _output_options(recipe, settings.access), settings.platforms, settings.grace_s,
            settings.accepts_removals,
        )  # fmt: skip
        memory = manager.directory(STATE_DIRECTORY) / f"{path.stem}.json"
        with locked(memory.with_suffix(".lock"), what=f"The recipe {path}"):
            known = read_state(memory)
            try:
                return SyncRound(
                    recipe, manager, known, options,
                    observer=bars, notify=_notifier(settings.notify), should_stop=should_stop,
                ).run()  # fmt: skip
            finally:
                write_state(memory, known)


def _read(path: Path) -> "Recipe":
    from mica.files import mapped_os_errors
    from mica.sync.recipe import SIZE_LIMIT, parse_recipe

    with mapped_os_errors(f"read the recipe {path}"), path.open("rb") as file:
        data = file.read(SIZE_LIMIT + 1)
    return parse_recipe(data, f"The recipe {path}")


def _check_start(path: Path, state: Path) -> None:
    """An error at the start ends the command, because another attempt would not help. Later a loop goes on after any
    error of a round."""
    from mica.publish.manager import ReleaseManager

    with ReleaseManager.open(state, _read(path).fqrn):
        pass


def _check(path: Path) -> int:
    recipe = _read(path)
    wrong = [wish for wish in recipe.wishes if wish.problem]
    for wish in wrong:
        sys.stderr.write(f"mica: {wish.text[:200]!r}: {wish.problem}\n")
    sys.stdout.write(f"{path}: {len(recipe.wishes)} lines, {len(wrong)} wrong\n")
    return 1 if wrong else 0


def _platforms(texts: list[str], *, every: bool) -> "Platforms":
    from mica.convert.converter import Platforms
    from mica.oci.platforms import Platform

    return Platforms(tuple(map(Platform.parse, texts)), every)


def _output_options(recipe: "Recipe", access: "Access") -> "RegistryOptions":
    """For the registry that the recipe names: the recipe's user, with the password from the environment. Else the usual
    login."""
    import dataclasses

    from mica.oci.auth import Credential
    from mica.sync.recipe import output_registry

    options = access.options()
    password = os.environ.get("DUCC_OUTPUT_REGISTRY_PASS", "")
    registry = output_registry(recipe.output_format)
    if not recipe.user or not password or not registry:
        return options

    def find(place: str) -> "Credential | None":
        is_own = place.partition("/")[0] == registry
        return Credential(recipe.user, password) if is_own else options.find_credential(place)

    return dataclasses.replace(options, find_credential=find)


def _notifier(path: Path | None) -> Any:
    from mica.files import mapped_os_errors

    def notify(event: dict[str, Any]) -> None:
        if path is not None:
            line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **event})
            with mapped_os_errors(f"write {path}"), path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    return notify


def _show(path: Path, recipe: "Recipe", result: "RoundResult", *, as_json: bool) -> None:
    if as_json:
        images = [
            {
                "image": one.image, "status": str(one.outcome), "new_layers": one.new_layers,
                **({"error": str(one.error)} if one.error else {}),
            }
            for one in result.images
        ]  # fmt: skip
        print_json({
            "recipe": str(path), "repository": recipe.fqrn, "images": images, "removed": list(result.removed),
            "removed_layers": result.removed_layers, "scheduled": result.scheduled,
        })  # fmt: skip
        return
    rows = [(one.image, str(one.outcome), str(one.error or f"{one.new_layers} new layers")) for one in result.images]
    print_table(("image", "status", ""), rows)
    if result.removed or result.removed_layers or result.scheduled:
        removed = f"{len(result.removed)} images and {result.removed_layers} layers removed"
        sys.stdout.write(f"{removed}, {result.scheduled} images leaving\n")
