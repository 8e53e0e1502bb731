"""The calls of the graph driver protocol, on the layers of one engine. Knows no HTTP. Any thread.

An engine says once, at its start, in which directory its layers are; a driver that is started again later finds it in a
file. One driver serves one engine.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mica.drivers.docker.messages import format_changes, text_of, texts_of
from mica.drivers.docker.options import DriverOptions
from mica.engine.layers import EngineLayers, open_layers
from mica.engine.unions import Union, choose_union
from mica.engine.upload import LayerUpload, upload_for
from mica.errors import MicaError, UserError
from mica.files import mapped_os_errors, replace_file
from mica.layers.provider import LayerProvider
from mica.logs import logger
from mica.providers.external import ExternalProvider
from mica.providers.node import NodeProvider, NoProvider
from mica.streams import Readable

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """`service`: socket of the node, None where it serves no layers. `repositories`: those that the node serves.
    `state`: the file that names the engine's directory for layers."""

    service: Path | None
    repositories: frozenset[str]
    cache: Path
    state: Path


@dataclass(frozen=True, slots=True)
class _Engine:
    """An engine that has said where its layers are."""

    layers: EngineLayers
    options: DriverOptions
    union: Union
    upload: LayerUpload
    closing: contextlib.ExitStack


class GraphDriver:
    """Use it as a block."""

    def __init__(self, settings: DriverSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._engine: _Engine | None = None

    def __enter__(self) -> Self:
        """Goes on where a predecessor ended. Raises UserError if its layers are unusable."""
        try:
            values = json.loads(self._settings.state.read_bytes())
            home, options = Path(values["home"]), [*map(str, values["options"])]
        except FileNotFoundError:
            return self
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._settings.state} is damaged.", hint="Remove it and restart the engine.") from error
        if home.is_dir():
            try:
                self._engine = self._open(home, self._checked(options))
            except MicaError as error:
                # The engine's next start reports the error; until then calls report that no engine has started.
                _log.error("the layers in %s cannot be used: %s", home, error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.closing.close()

    # What an engine may call, by name

    @property
    def calls(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {
            "Init": self._init,
            "Capabilities": lambda _: {"Capabilities": {"ReproducesExactDiffs": False}},
            "Create": lambda values: self._create(values, is_writable=False),
            "CreateReadWrite": lambda values: self._create(values, is_writable=True),
            "Remove": self._remove,
            "Get": self._get,
            "Put": self._put,
            "Exists": lambda values: {"Exists": self._layers.exists(text_of(values, "ID"))},
            "Status": self._status,
            "GetMetadata": lambda values: {"Metadata": self._layers.describe(text_of(values, "ID"))},
            "Cleanup": self._cleanup,
            "Changes": self._changes,
            "DiffSize": self._diff_size,
        }

    def apply_diff(self, layer_id: str, archive: Readable) -> int:
        return self._layers.apply(layer_id, archive)

    @contextlib.contextmanager
    def diff(self, values: dict[str, Any]) -> Iterator[Iterator[bytes]]:
        """The archive of a layer, in pieces."""
        engine, layer_id = self._started, text_of(values, "ID")
        if engine.layers.is_on_thin(layer_id):
            engine.upload.begin(layer_id)
        with engine.layers.diff(layer_id, text_of(values, "Parent") or None) as pieces:
            yield pieces

    # The engine's start and end

    def _init(self, values: dict[str, Any]) -> dict[str, Any]:
        home, options = Path(text_of(values, "Home")), texts_of(values, "Opts")
        if not home.is_absolute():
            raise UserError("The engine does not say where its layers are to be.")
        if values.get("UIDMaps") or values.get("GIDMaps"):
            raise UserError(
                "mica cannot shift user ids: start the engine without userns-remap, or with another driver."
            )
        checked = self._checked(options)
        with self._lock:
            before = self._engine
            if (
                before is not None
                and before.layers.home != home
                and before.layers.home.is_dir()
                and before.layers.count
            ):
                raise UserError(f"mica serves another engine already, whose layers are in {before.layers.home}.")
            # If the new engine cannot start, the one before keeps its layers.
            engine = self._open(home, checked)
            with mapped_os_errors(f"write {self._settings.state}"):
                self._settings.state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                document = json.dumps({"home": str(home), "options": options})
                replace_file(self._settings.state, document.encode("ascii"), mode=0o600)
            self._engine = engine
            if before is not None:
                before.closing.close()
        return {}

    def _checked(self, texts: list[str]) -> DriverOptions:
        options = DriverOptions.parse(texts)
        choose_union(options.union)
        if options.cache is not None and options.cache != self._settings.cache:
            raise UserError(
                f"Storage option mica.cache is {options.cache}, but the node's cache is {self._settings.cache}.",
                hint="The node's configuration says where its cache is.",
            )
        return options

    def _open(self, home: Path, options: DriverOptions) -> _Engine:
        union = choose_union(options.union)
        with contextlib.ExitStack() as stack:
            layers = stack.enter_context(open_layers(home, union, self._provider(options)))
            return _Engine(layers, options, union, upload_for(options.commit), stack.pop_all())

    def _provider(self, options: DriverOptions) -> LayerProvider:
        allowed = options.repositories
        if options.external is not None:
            return ExternalProvider(options.external, allowed)
        if self._settings.service is None:
            return NoProvider()
        return NodeProvider(self._settings.service, self._settings.repositories if allowed is None else allowed)

    @property
    def _started(self) -> _Engine:
        engine = self._engine
        if engine is None:
            raise UserError("The engine has not said where its layers are: it has to be restarted.")
        return engine

    @property
    def _layers(self) -> EngineLayers:
        return self._started.layers

    def _cleanup(self, _values: dict[str, Any]) -> dict[str, Any]:
        self._layers.unmount_all()
        return {}

    def _status(self, _values: dict[str, Any]) -> dict[str, Any]:
        engine = self._started
        options = engine.options
        allowed = self._settings.repositories if options.repositories is None else options.repositories
        return {
            "Status": [
                ["Union", str(engine.union.kind)],
                ["Layers from", self._source(options)],
                ["Repositories", ", ".join(sorted(allowed)) or "none"],
                ["Cache", str(self._settings.cache)],
                ["Commit", str(options.commit)],
                ["Layers", str(engine.layers.count)],
            ]
        }

    def _source(self, options: DriverOptions) -> str:
        if options.external is not None:
            return str(options.external)
        return "nowhere" if self._settings.service is None else "the node"

    # Layers

    def _create(self, values: dict[str, Any], *, is_writable: bool) -> dict[str, Any]:
        options = values.get("StorageOpt")
        if options:
            name = next(iter(options)) if isinstance(options, dict) else options
            raise UserError(f"Storage option {str(name)[:40]!r} of a container is not supported by mica.")
        parent = text_of(values, "Parent") or None
        label = text_of(values, "MountLabel")
        self._layers.create(text_of(values, "ID"), parent, is_writable=is_writable, label=label)
        return {}

    def _remove(self, values: dict[str, Any]) -> dict[str, Any]:
        # The engine counts uses of a layer. It does not know the layers still on this one: a crash lost our answers.
        self._layers.remove(text_of(values, "ID"), with_children=True)
        return {}

    def _get(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"Dir": str(self._layers.mount(text_of(values, "ID"), label=text_of(values, "MountLabel")))}

    def _put(self, values: dict[str, Any]) -> dict[str, Any]:
        self._layers.unmount(text_of(values, "ID"))
        return {}

    def _changes(self, values: dict[str, Any]) -> dict[str, Any]:
        changes = self._layers.changes(text_of(values, "ID"), text_of(values, "Parent") or None)
        return {"Changes": format_changes(changes)}

    def _diff_size(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"Size": self._layers.diff_size(text_of(values, "ID"), text_of(values, "Parent") or None)}
