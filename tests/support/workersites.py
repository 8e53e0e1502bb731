"""A site with several workers, a committer and conversions, of which some are killed all the time.

    site = Site(…); site.run(kills=100); site.check(…)

What is done is compared with a conversion one after the other in one process.
"""

import contextlib
import json
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.noise import noise
from tests.support.registry import ScriptedRegistry
from tests.support.repositories import Repository, findings, make_repository
from tests.support.s3repositories import S3Repository
from tests.support.zygote import Process, Zygote
from tests.unit.oci.samples import Sample, make_sample, make_tar

from mica.convert.converter import Converter, ConverterOptions, Platforms
from mica.oci import mediatypes
from mica.oci.session import RegistryOptions
from mica.oci.source import SourceOptions
from mica.oci.transport import TransportOptions
from mica.publish.rules import ObjectRules
from mica.repo.manifest import parse_manifest
from mica.thin.layout import layer_path

_ASKS_AT_ONCE = 3
_LAYERS_EACH = 5


def make_images(layers: int, images: int, *, size: int) -> list[Sample]:
    """Images of five layers each, which share some of them; together they have so many layers."""
    chance = random.Random(7)
    tars = [
        make_tar({f"layer-{n}/file-{k}": noise(size + 37 * n + k) for k in range(3)} | {
            f"layer-{n}/small-{k}": b"%d" % k * (n + 1) for k in range(40)
        })
        for n in range(layers)
    ]  # fmt: skip
    rest = list(range(layers))
    chance.shuffle(rest)
    chosen = []
    for _ in range(images):
        new, rest = rest[: -(-layers // images)], rest[-(-layers // images) :]
        old = chance.sample([n for n in range(layers) if n not in new], _LAYERS_EACH - len(new))
        chosen.append(sorted(new + old))
    assert not rest
    return [make_sample([tars[n] for n in numbers]) for numbers in chosen]


def add_images(registry: ScriptedRegistry, images: Sequence[Sample]) -> None:
    for number, image in enumerate(images):
        registry.add_blobs(image.blobs)
        registry.add_manifest(f"v{number}", mediatypes.OCI_MANIFEST, image.blobs[image.manifest.digest])


@dataclass
class Machine:
    """Where processes run: with a state directory and a configuration of their own."""

    zygote: Zygote
    state: Path
    config: Path

    def start(self, *arguments: str | Path, output: Path) -> Process:
        return self.zygote.start(*arguments, output=output, MICA_STATE=self.state, MICA_CONFIG=self.config)


@dataclass
class Role:
    """A process that is started again when it has ended."""

    machine: Machine
    arguments: tuple[str, ...]
    output: Path
    process: Process | None = None

    def keep(self) -> Process:
        if self.process is None or self.process.code() is not None:
            self.process = self.machine.start(*self.arguments, output=self.output)
        return self.process


@dataclass
class Site:
    """`repository` is on the first machine, which alone has its keys. `registry_host` is where machines find it."""

    repository: Repository | S3Repository
    registry: ScriptedRegistry
    images: Sequence[Sample]
    machines: Sequence[Machine]
    work: Path
    registry_host: str
    done: dict[int, dict[str, object]] = field(default_factory=dict)
    revisions: list[tuple[int, str]] = field(default_factory=list)
    kills: dict[str, int] = field(default_factory=dict)

    def run(self, *, workers: int, kills: int, patience_s: float) -> None:
        """Until all images are converted, and so many processes were killed meanwhile."""
        roles = [
            self._role(self.machines[number % len(self.machines)], f"worker-{number}", "worker", "--jobs", "1")
            for number in range(workers)
        ]
        roles.append(self._role(self.machines[0], "committer", "worker", "--jobs", "0", "--commit"))
        end = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(end,))
        watcher.start()
        try:
            self._work(roles, kills, time.monotonic() + patience_s)
        finally:
            end.set()
            watcher.join()
        last = [role.keep() for role in roles]
        for process in last:
            process.kill(signal.SIGTERM)
        for process in last:
            # One that was just started may have no handler yet.
            assert process.wait() in {0, -signal.SIGTERM}, process.output.read_text()

    def _role(self, machine: Machine, name: str, *arguments: str) -> Role:
        return Role(machine, (*arguments, "--insecure"), self.work / f"{name}.log")

    def _work(self, roles: list[Role], kills: int, deadline_s: float) -> None:
        chance = random.Random(len(roles))
        asks: dict[int, Role] = {}
        waiting = list(range(len(self.images)))
        killed = 0
        while len(self.done) < len(self.images) or killed < kills:
            assert time.monotonic() < deadline_s, f"{len(self.done)} images done, {killed} processes killed"
            for role in roles:
                role.keep()
            # The images come as the kills do, so that there is work all the time.
            share = len(self.images) if killed == kills else -(-len(self.images) * (killed + 1) // kills)
            while waiting and len(asks) < _ASKS_AT_ONCE and len(self.images) - len(waiting) < share:
                number = waiting.pop(0)
                asks[number] = self._asking(number)
            for number, role in list(asks.items()):
                if (role.process is not None) and role.process.code() is not None:
                    if self._is_done(number, role):
                        del asks[number]
                        continue
                    role.output.write_text("")
                role.keep()
            if killed < kills and asks:
                victim = chance.choice([*roles, *asks.values()])
                if victim.process is not None and victim.process.code() is None:
                    victim.process.kill()
                    killed += 1
                    kind = victim.output.stem.partition("-")[0]
                    self.kills[kind] = self.kills.get(kind, 0) + 1
            time.sleep(chance.random() * 0.4)

    def _asking(self, number: int) -> Role:
        machine = self.machines[0]
        arguments = ("convert", f"docker://{self.registry_host}/team/image:v{number}", self.repository.fqrn)
        return Role(machine, (*arguments, "--jobs", "0", "--json", "--insecure"), self.work / f"ask-{number}.log")

    def _is_done(self, number: int, role: Role) -> bool:
        assert role.process is not None
        text = role.output.read_text()
        if role.process.code() != 0:
            assert role.process.code() in {-signal.SIGKILL, 4}, text
            return False
        report = json.loads(text[text.index("{\n") : text.rindex("}") + 1])
        # What is reported is in a revision that is published already.
        assert self._published()[0] >= report["revision"]
        self.done[number] = report
        return True

    def _published(self) -> tuple[int, str]:
        with self.repository.manager() as manager:
            manifest, _ = parse_manifest(manager.read_manifest(), "The manifest")
        return manifest.revision, manifest.root_catalog.text

    def _watch(self, end: threading.Event) -> None:
        while not end.wait(0.05):
            now = self._published()
            if not self.revisions or self.revisions[-1] != now:
                self.revisions.append(now)

    def check(self, sequential: "dict[str, object]") -> None:
        """Everything is there, and as it would be without all this."""
        numbers = [number for number, _ in self.revisions]
        assert numbers == sorted(set(numbers)), "revisions strictly increase"
        assert sorted(self.done) == list(range(len(self.images)))
        assert layers_of(self.repository) == sequential
        if isinstance(self.repository, Repository):
            assert not findings(self.repository, self.work)
        else:
            assert not self.repository.errors(self.work)
        made = self.made()
        assert set(made) == set(sequential)
        # Each kill of a worker may cost the layer that it was at.
        assert sum(made.values()) - len(made) <= self.kills.get("worker", 0), made

    def made(self) -> dict[str, int]:
        """How often each layer was begun to be read."""
        layers = {layer.digest for image in self.images for layer in image.layers}
        counts: dict[str, int] = {}
        for request in list(self.registry.requests):
            digest = request.path.rpartition("/")[2]
            if digest in layers and "range" not in request.headers:
                counts[digest] = counts.get(digest, 0) + 1
        return counts


def layers_of(repository: Repository | S3Repository) -> dict[str, object]:
    """Every layer in the newest revision: digests of its catalog and of the files beside it."""
    found: dict[str, object] = {}
    with repository.manager() as manager, manager.snapshot() as catalogs:
        for directory in catalogs.children(b"/.layers"):
            if not directory.is_directory:
                continue
            place = b"/.layers/" + directory.name
            entries = catalogs.children(place)
            for layer in (entry for entry in entries if entry.is_directory):
                digest = f"sha256:{layer.name.decode()}"
                nested = catalogs._branch_below(place).mountpoints[layer_path(digest)]
                beside = {
                    entry.name: (entry, catalogs.chunks(place + b"/" + entry.name))
                    for entry in entries
                    if entry.name.startswith(layer.name + b".")
                }
                found[digest] = (nested, layer, beside)
    return found


def converted_one_by_one(
    registry: ScriptedRegistry, count: int, directory: Path, rules: ObjectRules
) -> dict[str, object]:
    """The layers of all images, from a repository of their own and one process."""
    repository = make_repository(directory, rules=rules)
    source = SourceOptions(registry=RegistryOptions(transport=TransportOptions(insecure=True)))
    with repository.manager() as manager:
        converter = Converter(manager, ConverterOptions(source))
        for number in range(count):
            name = f"docker://{registry.host}/team/image:v{number}"
            with converter.opened(name, Platforms()) as opened:
                converter.convert(opened)
    registry.requests.clear()
    return layers_of(repository)


@contextlib.contextmanager
def one_machine(state: Path, url: str, *, lease_s: float) -> Iterator[Machine]:
    with Zygote() as zygote:
        yield machine(zygote, state, url, lease_s=lease_s)


def machine(zygote: Zygote, state: Path, url: str, *, lease_s: float) -> Machine:
    config = state / "config.toml"
    config.write_text(f'[workers]\nqueue = "{url}"\nlease_s = {lease_s}\n')
    return Machine(zygote, state, config)
