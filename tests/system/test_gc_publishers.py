"""Garbage is collected again and again while four publishers go on: every revision that is kept is whole, each time.

The times that are days elsewhere are seconds here, and the publishers bring content again that was published before,
and has become garbage meanwhile. `MICA_GC_MINUTES=10` has it go on for longer.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.garbage import missing_objects, tags_of
from tests.support.repositories import FQRN, Repository, findings, ingest, make_repository
from tests.support.tars import END, member

from mica.collect.collection import opened_collection
from mica.collect.retention import RetentionRules
from mica.digest import Digest
from mica.errors import LostRaceError, NotFoundError
from mica.publish.rootcatalog import look_at_root
from mica.repo.catalog import NestedCatalog
from mica.store.local import LocalStore

pytestmark = pytest.mark.system
PUBLISHERS = 4
SECONDS = float(os.environ.get("MICA_GC_MINUTES", "0")) * 60 or 20.0
REFRESH_S = 0.5
LONGEST_S = 2.0
GRACE_S = 3.5
KEPT = 3

# Stores objects without the repository's lock, waits a little, then attaches them: as a conversion does.
PUBLISHER = """
import random, sys, time
from pathlib import Path
from mica.errors import TemporaryError
from mica.publish.catalogtree import directory_entry
from mica.publish.duration import PublicationTimer
from mica.publish.manager import ReleaseManager
from mica.publish.objectwriter import ObjectWriter
from mica.publish.storedfiles import store_file
from mica.store.local import LocalStore
state, fqrn, number, refresh_s, longest_s = Path(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:])
chance = random.Random(number)
published = refused = 0
print("ready", flush=True)
while sys.stdin.readable():
    with ReleaseManager.open(state, fqrn) as manager:
        on_disk, manager.store = manager.store, LocalStore(manager.store.root, refresh_after_s=refresh_s)
        on_disk.close()
        timer = PublicationTimer(manager.store, longest_s)
        contents = [b"content %d " % chance.randrange(400) * 50 for _ in range(chance.randrange(1, 40))]
        with ObjectWriter(manager.store, manager.settings.objects) as objects:
            entries = [store_file(objects, b"%d" % n, content) for n, content in enumerate(contents)]
        time.sleep(chance.choice([0, 0, 0.1, 1]))
        place = b"/of-%d" % number
        try:
            with manager.transaction(wait_s=60, timer=timer) as transaction:
                transaction.catalogs.remove(place)
                transaction.catalogs.put(place, directory_entry(place[1:]))
                for entry in entries:
                    transaction.catalogs.put(place + b"/" + entry.name, entry)
                if chance.random() < 0.5:
                    transaction.catalogs.nest(place, transaction.marker())
            published += 1
        except TemporaryError:
            refused += 1
    print(published, refused, flush=True)
"""


def start(repository: Repository, number: int) -> subprocess.Popen[str]:
    arguments = [str(repository.state), FQRN, str(number), str(REFRESH_S), str(LONGEST_S)]
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def kept_revisions(repository: Repository, work: Path) -> list[Digest]:
    """The newest revisions and those of tags, as they are right now."""
    with repository.manager() as manager:
        roots = [tag.root_catalog for tag in tags_of(manager).values()]
        previous: Digest | None = manager.head().root_catalog
        for _ in range(KEPT):
            if previous is None:
                break
            roots.append(previous)
            previous = look_at_root(manager.store, work, NestedCatalog(b"", previous, 0))[0].previous
        return roots


def check_round(repository: Repository, work: Path) -> None:
    """Whole is every revision that is kept. One that is not kept any more when its turn comes may lose objects."""
    roots = kept_revisions(repository, work)
    with LocalStore(repository.storage) as store:
        for root in roots:
            try:
                missing = missing_objects(store, root)
            except NotFoundError as error:
                missing = [str(error)]
            if missing:
                assert root not in kept_revisions(repository, work), missing[:3]


def test_every_kept_revision_stays_whole(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    ingest(repository, member(b"file", b"of the first revision") + END, b"/first", nested=True)
    rules = RetentionRules(keep_revisions=KEPT, keep_s=0, auto_tag_s=None, grace_s=GRACE_S)
    publishers = [start(repository, number) for number in range(PUBLISHERS)]
    rounds = removed = 0
    pause = random.Random(0)
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with repository.manager() as manager, opened_collection(manager, rules, wait_s=60) as collection:
                try:
                    removed += collection.run().survey.removed.objects
                except LostRaceError:
                    continue  # it says that the others publish so often, and has removed nothing
            rounds += 1
            check_round(repository, tmp_path)
            assert [process.poll() for process in publishers] == [None] * PUBLISHERS
            time.sleep(pause.random() / 2)
    finally:
        for process in publishers:
            process.send_signal(signal.SIGKILL)
        told = [process.communicate() for process in publishers]
    assert [error for _, error in told if error] == []
    published = [int(out.split("\n")[-2].split()[0]) for out, _ in told if out.count("\n") > 1]
    assert len(published) == PUBLISHERS
    assert sum(published) >= 10
    assert rounds >= 3
    assert removed >= 50
    assert [one for one in findings(repository, tmp_path) if one.severity == "error"] == []
    print(f"{rounds} rounds, {removed} objects removed, {published} revisions published")
