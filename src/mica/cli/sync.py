"""`mica sync`: a repository as a recipe wishes it, once or again and again."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mica.cli.options import AuthfileOption, CertsOption, InsecureOption, JsonOption, StateOption, WaitOption
from mica.cli.output import print_json, print_table, show_error

if TYPE_CHECKING:
    from mica.cli.registries import Access
    from mica.oci.session import RegistryOptions
    from mica.sync.recipe import Recipe
    from mica.sync.round import RoundResult
    from mica.thin.converter import Platforms

_DAY_S = 86400


def sync(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The wish list, a YAML file.")],
    state: StateOption,
    loop: Annotated[bool, typer.Option("--loop", help="Again and again, until SIGTERM or SIGINT.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", min=1, help="Seconds between the rounds of a loop.")] = 600,
    check: Annotated[bool, typer.Option("--check", help="Only read the recipe and name what is wrong.")] = False,
    platform: Annotated[
        list[str] | None, typer.Option(help="Which images of an index, such as linux/amd64; several make an index.")
    ] = None,
    all_platforms: Annotated[bool, typer.Option("--all-platforms", help="All images of each index.")] = False,
    grace_days: Annotated[
        float, typer.Option(min=0, help="Days that an image and its layers stay after they left the recipe.")
    ] = 30,
    notify: Annotated[
        Path | None, typer.Option("--notify", "-n", help="File that gets a line of JSON for all that happens.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=16, help="Layers that are made side by side.")] = 2,
    wait_s: WaitOption = 300,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert the images of a wish list that are new or have changed, push their thin images, remove what has left.

    A line that fails never stops the others; the summary names it, and the exit code tells of it.
    """
    from mica.cli.registries import Access

    access = Access(insecure, authfile, certs)
    settings = _Settings(
        state, access, _platforms(platform or [], every=all_platforms), int(grace_days * _DAY_S), notify, jobs, wait_s
    )
    if check:
        raise typer.Exit(_check(recipe))
    stop = threading.Event()
    if loop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    while True:
        code = _one_round(recipe, settings, stop, as_json=as_json, goes_on=loop)
        if not loop or stop.wait(interval_s):
            raise typer.Exit(0 if loop else code)


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
    ) -> None:
        self.state = state
        self.access = access
        self.platforms = platforms
        self.grace_s = grace_s
        self.notify = notify
        self.jobs = jobs
        self.wait_s = wait_s


def _one_round(path: Path, settings: _Settings, stop: threading.Event, *, as_json: bool, goes_on: bool) -> int:
    from mica.errors import MicaError

    try:
        recipe = _read(path)
        result = _run(path, recipe, settings, stop)
    except MicaError as error:
        if not goes_on:
            raise
        show_error(error)
        return error.exit_code
    _show(path, recipe, result, as_json=as_json)
    return result.exit_code


def _run(path: Path, recipe: "Recipe", settings: _Settings, stop: threading.Event) -> "RoundResult":
    from mica.cli.bars import LayerBars
    from mica.files import locked
    from mica.publish.manager import ReleaseManager
    from mica.sync.round import SyncOptions, SyncRound
    from mica.sync.state import read_state, write_state
    from mica.thin.converter import ConverterOptions

    converter = ConverterOptions(settings.access.source_options(), jobs=settings.jobs, wait_s=settings.wait_s)
    options = SyncOptions(converter, _output_options(recipe, settings.access), settings.platforms, settings.grace_s)
    with ReleaseManager.open(settings.state, recipe.fqrn) as manager, LayerBars() as bars:
        memory = manager.sync / f"{path.stem}.json"
        with locked(memory.with_suffix(".lock"), what=f"The recipe {path}"):
            known = read_state(memory)
            try:
                return SyncRound(
                    recipe, manager, known, options,
                    observer=bars, notify=_notifier(settings.notify), should_stop=stop.is_set,
                ).run()  # fmt: skip
            finally:
                write_state(memory, known)


def _read(path: Path) -> "Recipe":
    from mica.files import mapped_os_errors
    from mica.sync.recipe import SIZE_LIMIT, parse_recipe

    with mapped_os_errors(f"read the recipe {path}"), path.open("rb") as file:
        data = file.read(SIZE_LIMIT + 1)
    return parse_recipe(data, f"The recipe {path}")


def _check(path: Path) -> int:
    recipe = _read(path)
    wrong = [wish for wish in recipe.wishes if wish.problem]
    for wish in wrong:
        sys.stderr.write(f"mica: {wish.text[:200]!r}: {wish.problem}\n")
    sys.stdout.write(f"{path}: {len(recipe.wishes)} lines, {len(wrong)} wrong\n")
    return 1 if wrong else 0


def _platforms(texts: list[str], *, every: bool) -> "Platforms":
    from mica.oci.platforms import Platform
    from mica.thin.converter import Platforms

    return Platforms(tuple(map(Platform.parse, texts)), every)


def _output_options(recipe: "Recipe", access: "Access") -> "RegistryOptions":
    """The recipe's user with the password that the environment has for it, else the usual login."""
    import dataclasses

    from mica.oci.auth import Credential

    options = access.options()
    password = os.environ.get("DUCC_OUTPUT_REGISTRY_PASS", "")
    if not recipe.user or not password:
        return options
    return dataclasses.replace(options, find_credential=lambda _: Credential(recipe.user, password))


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
