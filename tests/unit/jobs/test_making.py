"""Conversions with a queue: with and without workers, several at once, after failures."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.noise import noise
from tests.support.registry import Reply, Request, ScriptedRegistry, scripted_registry
from tests.support.repositories import Repository, findings, make_repository
from tests.unit.oci.samples import Sample, make_sample, make_tar, write_layout

from mica.convert.converter import Converter, ConverterOptions, Platforms
from mica.convert.layerbuilder import DEFAULT_LIMITS, StoppedError
from mica.convert.plan import LayerState
from mica.convert.publishing import Conversion
from mica.errors import IntegrityError, NotFoundError
from mica.jobs.committer import Committer, commit_waiting
from mica.jobs.making import QueueMaker
from mica.jobs.queue import JobQueue
from mica.jobs.tables import RowState
from mica.jobs.tasks import worker_task
from mica.jobs.worker import LayerWorker
from mica.oci import mediatypes
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions
from mica.oci.transport import TransportOptions

FAST = TransportOptions(attempts=1, backoff_s=0.001, connect_timeout_s=5, read_timeout_s=5, longest_wait_s=2)
SOURCE = SourceOptions(registry=RegistryOptions(transport=FAST))
SAMPLE = make_sample([make_tar({"etc/name": b"first"}), make_tar({"usr/big": noise(300_000)})])
FIRST, SECOND = (layer.digest for layer in SAMPLE.layers)


@pytest.fixture
def registry() -> Iterator[ScriptedRegistry]:
    with scripted_registry() as registry:
        add(registry, SAMPLE, "v1")
        yield registry


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def add(registry: ScriptedRegistry, sample: Sample, tag: str) -> None:
    registry.add_blobs(sample.blobs)
    registry.add_manifest(tag, mediatypes.OCI_MANIFEST, sample.blobs[sample.manifest.digest])


def asked(registry: ScriptedRegistry, digest: str) -> int:
    return sum(path.endswith(digest) for path in registry.paths("/blobs/"))


class Converting:
    """A converter with a queue of its own, as another process would have it."""

    def __init__(self, repository: Repository, queue: JobQueue, *, jobs: int = 2) -> None:
        self.manager = repository.manager()
        options = ConverterOptions(
            SOURCE, wait_s=60, open_maker=lambda manager: QueueMaker(queue, manager, DEFAULT_LIMITS, jobs=jobs)
        )
        self.converter = Converter(self.manager, options)

    def convert(self, source: str) -> Conversion:
        with self.converter.opened(source, Platforms(), name="tests/image:1") as opened:
            return self.converter.convert(opened)


@contextmanager
def working(queue: JobQueue, state: Path, scratch: Path) -> Iterator[LayerWorker]:
    """A worker beside the block; it has to end well."""
    worker = LayerWorker(queue, worker_task(state, (), SOURCE), scratch, jobs=2)
    end, errors = threading.Event(), []

    def run() -> None:
        try:
            worker.run(end)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield worker
    finally:
        end.set()
        thread.join()
    assert not errors, errors


def await_true(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def hold(registry: ScriptedRegistry, digest: str) -> tuple[threading.Event, threading.Event]:
    """The layer's first half comes at once and the rest only when the second event is set; the first one says that
    somebody asks for it."""
    begun, gate = threading.Event(), threading.Event()
    real = registry.answer

    def answer(request: Request) -> Reply:
        if request.path.endswith(digest):
            begun.set()
            gate.wait(60)
        return real(request)

    registry.answer = answer  # type: ignore[method-assign]
    return begun, gate


def test_a_conversion_goes_on_without_any_worker(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, tmp_path: Path
) -> None:
    conversion = Converting(repository, queue).convert(f"docker://{registry.host}/team/image:v1")
    assert [layer.is_new for layer in conversion.layers] == [True, True]
    assert conversion.new_objects > 4
    assert {row.state for row in queue.layers.all_rows()} == {RowState.PUBLISHED}
    assert {row.revision for row in queue.layers.all_rows()} == {conversion.revision}
    again = Converting(repository, queue).convert(f"docker://{registry.host}/team/image:v1")
    assert (again.revision, asked(registry, FIRST)) == (conversion.revision, 1)
    assert not findings(repository, tmp_path)


def test_workers_make_what_a_conversion_leaves_to_them(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, tmp_path: Path
) -> None:
    with working(queue, repository.state, tmp_path / "scratch") as worker:
        conversion = Converting(repository, queue, jobs=0).convert(f"docker://{registry.host}/team/image:v1")
    assert [layer.is_new for layer in conversion.layers] == [True, True]
    assert {row.worker for row in queue.layers.all_rows()} == {worker.name}
    assert not list((tmp_path / "scratch").iterdir())
    assert not findings(repository, tmp_path)


def test_files_are_read_by_workers_of_the_same_host(
    repository: Repository, queue: JobQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the conversion was given a relative path, which leads elsewhere in the worker."""
    write_layout(tmp_path / "image", SAMPLE)
    monkeypatch.chdir(tmp_path)
    thread = threading.Thread(target=lambda: Converting(repository, queue, jobs=0).convert("oci:image"))
    thread.start()
    await_true(lambda: len(queue.layers.all_rows()) == 2)
    monkeypatch.chdir("/")
    with working(queue, repository.state, tmp_path / "scratch"):
        thread.join()
    assert {row.state for row in queue.layers.all_rows()} == {RowState.PUBLISHED}


def test_conversions_at_once_make_a_layer_once(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, tmp_path: Path
) -> None:
    begun, gate = hold(registry, SECOND)
    done: list[Conversion] = []
    source = f"docker://{registry.host}/team/image:v1"
    threads = [
        threading.Thread(target=lambda: done.append(Converting(repository, queue, jobs=1).convert(source)))
        for _ in range(4)
    ]
    with working(queue, repository.state, tmp_path / "scratch"):
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        gate.set()
        for thread in threads:
            thread.join()
    assert len(done) == 4
    assert sum(layer.is_new for one in done for layer in one.layers) == 2
    assert (asked(registry, FIRST), asked(registry, SECOND)) == (1, 1)
    assert not findings(repository, tmp_path)


def test_a_layer_that_fails_in_a_worker_is_the_conversions_error(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, tmp_path: Path
) -> None:
    good = registry.blobs[SECOND]
    registry.blobs[SECOND] = bytes(len(good))
    source = f"docker://{registry.host}/team/image:v1"
    with working(queue, repository.state, tmp_path / "scratch"):
        with pytest.raises(IntegrityError, match=SECOND[7:19]):
            Converting(repository, queue, jobs=0).convert(source)
        await_true(lambda: queue.layers.counts(repository.fqrn).get(RowState.STAGED) == 1)
        registry.blobs[SECOND] = good
        assert len(Converting(repository, queue, jobs=0).convert(source).layers) == 2
    assert asked(registry, FIRST) == 1, "it stayed staged"
    assert not findings(repository, tmp_path)


def test_a_source_that_lost_the_layer_is_named(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, tmp_path: Path
) -> None:
    begun, gate = hold(registry, f"manifests/{SAMPLE.manifest.digest}")
    errors: list[Exception] = []

    def convert() -> None:
        try:
            Converting(repository, queue, jobs=0).convert(f"docker://{registry.host}/team/image:v1")
        except NotFoundError as error:
            errors.append(error)

    thread = threading.Thread(target=convert)
    with working(queue, repository.state, tmp_path / "scratch"):
        thread.start()
        assert begun.wait(60)
        registry.manifests.clear()
        gate.set()
        thread.join()
    assert len(errors) == 1


def test_a_worker_that_ends_gives_its_layer_back(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, tmp_path: Path
) -> None:
    with repository.manager() as manager, ExitStack() as stack:
        converting = Converting(repository, queue, jobs=0)
        source = f"docker://{registry.host}/team/image:v1"
        begun, gate = hold(registry, SECOND)
        thread = threading.Thread(target=converting.convert, args=(source,))
        stack.callback(thread.join)
        with working(queue, repository.state, tmp_path / "scratch"):
            thread.start()
            assert begun.wait(60)
        row = queue.layers.rows(manager.fqrn, [SECOND])[SECOND]
        assert (row.state, row.tries) == (RowState.WANTED, 0)
        gate.set()
        with working(queue, repository.state, tmp_path / "scratch"):
            thread.join()
    assert {row.state for row in queue.layers.all_rows()} == {RowState.PUBLISHED}


def test_a_conversion_that_is_stopped_gives_its_layers_back(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue
) -> None:
    begun, gate = hold(registry, SECOND)
    converting = Converting(repository, queue)
    errors: list[BaseException] = []

    def convert() -> None:
        try:
            converting.convert(f"docker://{registry.host}/team/image:v1")
        except StoppedError as error:
            errors.append(error)

    thread = threading.Thread(target=convert)
    thread.start()
    assert begun.wait(60)
    converting.converter.stop()
    thread.join()
    gate.set()
    assert len(errors) == 1
    assert queue.layers.rows(repository.fqrn, [SECOND])[SECOND].state is RowState.WANTED


def test_a_staged_layer_whose_catalog_is_gone_is_made_again(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, tmp_path: Path
) -> None:
    stage(registry, repository, queue)
    (layer, *_) = queue.layers.staged(repository.fqrn, [FIRST])
    catalog = layer.sealed.nested.digest.text
    (repository.storage / f"data/{catalog[:2]}/{catalog[2:]}C").unlink()
    Converting(repository, queue).convert(f"docker://{registry.host}/team/image:v1")
    assert (asked(registry, FIRST), asked(registry, SECOND)) == (2, 1)
    assert not findings(repository, tmp_path)


def stage(registry: ScriptedRegistry, repository: Repository, queue: JobQueue) -> None:
    """Both layers of the sample, as after a conversion that was killed before it published."""
    with repository.manager() as manager, Converting(repository, queue).converter.opened(
        f"docker://{registry.host}/team/image:v1", Platforms()
    ) as opened:  # fmt: skip
        from mica.convert.plan import SilentObserver, plan_conversion

        maker = QueueMaker(queue, manager, DEFAULT_LIMITS, jobs=2)
        images: list[Any] = [one.image for one in opened.images]
        plan = plan_conversion(images, manager, maker.find_staged, source=opened.source)
        assert {one.state for one in plan.layers} == {LayerState.MISSING}
        maker.make(plan, SilentObserver(), threading.Event())
        plan = plan_conversion(images, manager, maker.find_staged, source=opened.source)
        assert {one.state for one in plan.layers} == {LayerState.STAGED}


def test_waiting_layers_become_one_revision(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, tmp_path: Path
) -> None:
    stage(registry, repository, queue)
    with repository.manager() as manager:
        before = manager.head().revision
        assert set(commit_waiting(manager, queue.layers, wait_s=0)) == {FIRST, SECOND}
        assert manager.head().revision == before + 1
        assert commit_waiting(manager, queue.layers, wait_s=0) == []
        assert manager.head().revision == before + 1
    assert {(row.state, row.revision) for row in queue.layers.all_rows()} == {(RowState.PUBLISHED, before + 1)}
    assert not findings(repository, tmp_path)


def test_a_conversion_publishes_what_waits(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, tmp_path: Path
) -> None:
    stage(registry, repository, queue)
    other = make_sample([make_tar({"etc/other": b"other"})])
    add(registry, other, "v2")
    conversion = Converting(repository, queue).convert(f"docker://{registry.host}/team/image:v2")
    assert {(row.state, row.revision) for row in queue.layers.all_rows()} == {(RowState.PUBLISHED, conversion.revision)}
    assert len(conversion.layers) == 1
    assert not findings(repository, tmp_path)


def test_a_committer_that_was_killed_before_the_table_knew(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(registry, repository, queue)
    with repository.manager() as manager:
        with monkeypatch.context() as patch:
            patch.setattr(queue.layers, "settle", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                commit_waiting(manager, queue.layers, wait_s=0)
        revision = manager.head().revision
        assert {row.state for row in queue.layers.all_rows()} == {RowState.STAGED}
        assert commit_waiting(manager, queue.layers, wait_s=0) == []
        assert manager.head().revision == revision
    assert {(row.state, row.revision) for row in queue.layers.all_rows()} == {(RowState.PUBLISHED, revision)}


def test_the_committer_leaves_repositories_alone_whose_key_is_elsewhere(
    registry: ScriptedRegistry, repository: Repository, queue: JobQueue
) -> None:
    stage(registry, repository, queue)
    key = repository.keys / f"{repository.fqrn}.key"
    content = key.read_bytes()
    key.unlink()
    end = threading.Event()
    thread = threading.Thread(target=Committer(queue, repository.state).run, args=(end,))
    thread.start()
    try:
        time.sleep(1)
        assert {row.state for row in queue.layers.all_rows()} == {RowState.STAGED}
        key.write_bytes(content)
        await_true(lambda: {row.state for row in queue.layers.all_rows()} == {RowState.PUBLISHED})
    finally:
        end.set()
        thread.join()
