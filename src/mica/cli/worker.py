"""`mica worker` and `mica layers`: the process that makes layers for others, and what became of those asked for."""

import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import AuthfileOption, CertsOption, ConfigOption, InsecureOption, JsonOption, StateOption

if TYPE_CHECKING:
    from mica.jobs.layertable import LayerRow

_SCRATCH = "workers"
_LOOK_S = 0.5
RepositoriesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[FQRN]...", help="Only these repositories; default: all known here.")
]


def worker(
    state: StateOption,
    repositories: RepositoriesArgument = None,
    config: ConfigOption = None,
    jobs: Annotated[int, typer.Option(min=0, max=64, help="Layers that are made at the same time.")] = 2,
    commit: Annotated[
        bool, typer.Option("--commit", help="Also publish finished layers, where the repository's keys are here.")
    ] = False,
    max_layer_gib: Annotated[int, typer.Option(min=1, help="Refuse a layer that unpacks to more GiB.")] = 1024,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
) -> None:
    """Make the layers that conversions of this and other machines ask for, until SIGTERM.

    The section [workers] of the configuration names the queue. A worker needs the settings of a repository and access
    to its storage, but no keys. SIGTERM gives back what is under way; what a killed worker had, others take over.
    """
    from concurrent.futures import ThreadPoolExecutor

    from mica.cli.queues import required_queue
    from mica.cli.registries import Access
    from mica.convert.layerbuilder import ConversionLimits
    from mica.errors import UsageError
    from mica.jobs.committer import Committer
    from mica.jobs.tasks import worker_task
    from mica.jobs.worker import LayerWorker
    from mica.publish.settings import read_settings
    from mica.signals import EndSignals

    if not jobs and not commit:
        raise UsageError("With --jobs 0 and without --commit a worker has nothing to do.")
    only = tuple(repositories or ())
    for fqrn in only:
        read_settings(state, fqrn)
    task = worker_task(state, only, Access(insecure, authfile, certs, config).source_options())
    limits = ConversionLimits(max_layer_bytes=max_layer_gib << 30)
    with (
        EndSignals(second_ends=True) as signals,
        required_queue(config) as queue,
        ThreadPoolExecutor(2, thread_name_prefix="worker") as pool,
    ):
        end = threading.Event()
        making = LayerWorker(queue, task, state / _SCRATCH, jobs=jobs, limits=limits)
        running = [pool.submit(making.run, end)] if jobs else []
        if commit:
            running.append(pool.submit(Committer(queue, state, only).run, end))
        sys.stdout.write(f"{making.name}\n")
        sys.stdout.flush()
        while not signals.wait(_LOOK_S) and not any(one.done() for one in running):
            pass
        end.set()
        for one in running:
            one.result()


def layers(
    repositories: RepositoriesArgument = None,
    config: ConfigOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Only layers that are wanted, making, staged, published or failed."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what became of the layers that were asked for through the queue: since when, by whom, tries, errors."""
    from mica.cli.printing import print_json, print_table
    from mica.cli.queues import required_queue
    from mica.errors import UsageError
    from mica.jobs.tables import RowState

    known = [str(state) for state in RowState]
    for name in only or ():
        if name not in known:
            raise UsageError(f"{name!r} is no state of a layer.", hint=f"They are {', '.join(known)}.")
    with required_queue(config) as queue:
        rows = queue.layers.all_rows(repositories or (), [RowState(name) for name in only or ()])
    if as_json:
        print_json([_facts(row) for row in rows])
        return
    columns = ("repository", "layer", "state", "since", "worker", "tries", "")
    print_table(columns, [_cells(row) for row in rows])


def _facts(row: "LayerRow") -> dict[str, object]:
    return {
        "repository": row.repository, "digest": row.digest, "state": str(row.state), "since": _time(row.since_s),
        "worker": row.worker, "tries": row.tries, "error": str(row.error or ""), "revision": row.revision,
    }  # fmt: skip


def _cells(row: "LayerRow") -> tuple[object, ...]:
    note = row.error or (f"revision {row.revision}" if row.revision else "")
    return row.repository, row.digest[7:19], row.state, _time(row.since_s), row.worker, row.tries, note


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
