"""The layers of one engine: made, filled, mounted, read and removed. Adapters of engines call it.

<home>/mica.db              the records (`snapshots.py`)
<home>/<id>/diff/           the layer itself, ready for a union; the upper directory when it is mounted
<home>/<id>/work            overlayfs's own
<home>/<id>/merged/         mount point
<home>/<id>/below/          mount point of what is below it, while changes are listed
<home>/<id>/sheets/         of a thin layer: what makes its real ones readable for this union (`sheets.py`)
<home>/.new-<hex>/          a layer that is being made or filled; rubbish after a crash
<home>/.old-<hex>/          a layer that is being removed; rubbish after a crash

A lowest layer whose only entry is `thin.json` is thin: the layers that it names stand in its place. Its own mount shows
`thin.json` on top of them, since engines read it again when they push or save.

The order of steps leaves a usable state after kill -9: a layer's record is written before the layer gets its name, and
its name is removed before its record; a mount is counted after it is made. `open_layers` clears up what a predecessor
left in between.

Any thread. Calls for one layer wait for each other; long reading and writing holds only the layer it is about.
"""

import contextlib
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mica import linux
from mica.engine.diff import Change, list_changes, measure, write_diff
from mica.engine.movebelowlinks import move_below_links
from mica.engine.signsheets import readable_layers
from mica.engine.snapshots import READ_ONLY, READ_WRITE, Snapshot, SnapshotStore, check_id
from mica.engine.thinlayer import find_descriptor
from mica.engine.unions import Place, Union
from mica.engine.unpack import unpack_layer
from mica.engine.uppertree import UpperTree
from mica.errors import UserError
from mica.files import mapped_os_errors, owned_fd, remove_tree
from mica.layers.provider import LayerProvider
from mica.layers.stack import LayerStack
from mica.mountinfo import read_mounts
from mica.streams import Readable
from mica.thin.descriptor import ThinDescriptor
from mica.union.directories import Tree, liken_directories, plan_directories, visible_trees

DATABASE = "mica.db"
_UNION = "union"


@dataclass(frozen=True, slots=True)
class LayerDirectory:
    path: Path

    @property
    def diff(self) -> Path:
        return self.path / "diff"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def merged(self) -> Path:
        return self.path / "merged"

    @property
    def below(self) -> Path:
        return self.path / "below"

    @property
    def sheets(self) -> Path:
        return self.path / "sheets"


@dataclass(frozen=True, slots=True)
class _Chain:
    """The layers below a layer, and which of them stand in place of a thin layer."""

    lowest: str
    parents: tuple[Snapshot, ...]
    thin: ThinDescriptor | None
    is_thin_itself: bool


@contextlib.contextmanager
def open_layers(home: Path, union: Union, provider: LayerProvider) -> Iterator["EngineLayers"]:
    """The layers of an engine, in its directory `home`. Raises UserError if they cannot be used."""
    with mapped_os_errors(f"use {home} for layers"):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with SnapshotStore(home / DATABASE) as store:
        _check_union(store, union, home)
        layers = EngineLayers(home, store, union, provider)
        layers.clear_up()
        yield layers


def _check_union(store: SnapshotStore, union: Union, home: Path) -> None:
    """Refuse layers of the other kind of union: its whiteouts would be ordinary files in this one."""
    before = store.setting(_UNION)
    if before not in {None, union.kind} and store.all():
        raise UserError(
            f"The layers in {home} were made for {before} and cannot be used with {union.kind}.",
            hint=f"Go on with {before}, or remove all images and containers first.",
        )
    store.set_setting(_UNION, union.kind)


class EngineLayers:
    """Use `open_layers`."""

    def __init__(self, home: Path, store: SnapshotStore, union: Union, provider: LayerProvider) -> None:
        self.home = home
        self._store = store
        self._union = union
        self._provider = provider
        self._locks = _Locks()
        self._borrowed: dict[str, int] = {}

    # Life

    def create(self, layer_id: str, parent: str | None, *, is_writable: bool, label: str = "") -> None:
        """An empty layer. Raises UserError if there is one of that name, NotFoundError if there is no such parent, and
        what the provider raises: engines forget a container's layer that was made and then cannot be mounted."""
        check_id(layer_id)
        if is_writable and parent is not None and self._store.get(parent).kind == READ_ONLY:
            chain = self._chain(parent)
            with self._lower(replace(chain, parents=(self._store.get(parent), *chain.parents))):
                pass
        with self._locks.holding(layer_id), mapped_os_errors(f"make layer {layer_id}"):
            new = LayerDirectory(self.home / f".new-{secrets.token_hex(8)}")
            new.path.mkdir(mode=0o700)
            try:
                for directory, mode in ((new.diff, 0o755), (new.work, 0o700), (new.merged, 0o700), (new.below, 0o700)):
                    directory.mkdir()
                    directory.chmod(mode)
                self._store.add(layer_id, parent, READ_WRITE if is_writable else READ_ONLY, label)
                new.path.rename(self.home / layer_id)
            except BaseException:
                remove_tree(new.path)
                raise

    def exists(self, layer_id: str) -> bool:
        return self._store.find(check_id(layer_id)) is not None

    def remove(self, layer_id: str, *, with_children: bool = False) -> None:
        """Remove a layer; nothing happens if there is none. A mount of it is undone: engines remove only layers that
        they do not use, even if a crash kept them from unmounting.

        Raises UserError as long as other layers are made on it, unless these are to go first.
        """
        with self._locks.holding(check_id(layer_id)), mapped_os_errors(f"remove layer {layer_id}"):
            if self._store.find(layer_id) is None:
                return
            if with_children:
                for child in self._store.children(layer_id):
                    self.remove(child.id, with_children=True)
            if self._store.has_children(layer_id):
                raise UserError(f"Layer {layer_id} is the parent of others.", hint="Remove those first.")
            directory = self.directory(layer_id)
            self._unmount(directory)
            old = self.home / f".old-{secrets.token_hex(8)}"
            with contextlib.suppress(FileNotFoundError):
                directory.path.rename(old)
            self._store.remove(layer_id)
            self._borrowed.pop(layer_id, None)
            if old.exists():
                remove_tree(old)

    def directory(self, layer_id: str) -> LayerDirectory:
        return LayerDirectory(self.home / check_id(layer_id))

    def clear_up(self) -> None:
        """After a predecessor: remove rubbish, unmount layers that were mounted for no caller, forget lost mounts."""
        with mapped_os_errors(f"clear up {self.home}"):
            for pattern in (".new-*", ".old-*"):
                for path in self.home.glob(pattern):
                    self._unmount(LayerDirectory(path))
                    remove_tree(path)
            mounted = _mount_points(self.home)
            for snapshot in self._store.all():
                directory = self.directory(snapshot.id)
                if not directory.path.is_dir():
                    self._drop_nameless(snapshot)
                    continue
                if directory.below in mounted:
                    _detach(directory.below)
                if snapshot.mounts and directory.merged not in mounted and self._mounts_at_all(snapshot):
                    self._store.forget_mounts(snapshot.id)
                elif not snapshot.mounts and directory.merged in mounted:
                    _detach(directory.merged)

    def _drop_nameless(self, snapshot: Snapshot) -> None:
        """Remove the record of a layer that never got its name, or has lost it. No layer is made on it: one without a
        name cannot be a parent, and a layer with children does not lose its name."""
        if not self._store.has_children(snapshot.id):
            self._store.remove(snapshot.id)

    def _mounts_at_all(self, snapshot: Snapshot) -> bool:
        return snapshot.parent is not None or self._descriptor(snapshot) is not None

    # Mounting

    def mount(self, layer_id: str, *, label: str = "") -> Path:
        """Where the layer with all that is below it can be read and written; every call needs one of `unmount`.

        A layer that others are made on is read-only. Raises what the provider raises for layers of a thin image.
        """
        with self._locks.holding(check_id(layer_id)), mapped_os_errors(f"mount layer {layer_id}"):
            target = self._mounted(layer_id, self._chain(layer_id), label=label)
            self._store.count_mount(layer_id, 1)
            return target

    def unmount(self, layer_id: str) -> None:
        """Undo one call of `mount`; one call too many does no harm."""
        with self._locks.holding(check_id(layer_id)), mapped_os_errors(f"unmount layer {layer_id}"):
            snapshot = self._store.find(layer_id)
            if snapshot is None:
                return
            if not self._store.count_mount(layer_id, -1) and not self._borrowed.get(layer_id):
                self._let_go(layer_id)

    def unmount_all(self) -> None:
        """For an engine that ends: it does not use its layers any more."""
        for snapshot in self._store.all():
            with self._locks.holding(snapshot.id), mapped_os_errors(f"unmount layer {snapshot.id}"):
                self._store.forget_mounts(snapshot.id)
                if not self._borrowed.get(snapshot.id):
                    self._let_go(snapshot.id)

    @contextlib.contextmanager
    def _borrowing(self, layer_id: str, chain: _Chain, lower: LayerStack | None) -> Iterator[Path]:
        """The layer, mounted for our own reading. `lower`: the layers below it, if the caller has them."""
        with self._locks.holding(layer_id):
            target = self._mounted(layer_id, chain, known=lower)
            self._borrowed[layer_id] = self._borrowed.get(layer_id, 0) + 1
        try:
            yield target
        finally:
            with self._locks.holding(layer_id):
                left = self._borrowed[layer_id] = self._borrowed.get(layer_id, 1) - 1
                if left <= 0:
                    self._borrowed.pop(layer_id, None)
                    snapshot = self._store.find(layer_id)
                    if snapshot is None or not snapshot.mounts:
                        self._unmount(self.directory(layer_id))

    def _mounted(self, layer_id: str, chain: _Chain, *, label: str = "", known: LayerStack | None = None) -> Path:
        directory = self.directory(layer_id)
        if (not chain.parents and chain.thin is None) or self._hides_below(directory.diff):
            return directory.diff
        if linux.mounted_device(directory.merged) is not None:
            return directory.merged
        with self._lower(chain) if known is None else contextlib.nullcontext(known) as lower:
            if self._store.has_children(layer_id):
                # Its directory is a layer of other unions, which must not change.
                layers, place = replace(lower, lower=(directory.diff, *lower.lower)), Place(directory.merged)
            else:
                self._root(layer_id, chain, lower)
                layers, place = lower, Place(directory.merged, directory.diff, directory.work)
            label = label or self._store.get(layer_id).label
            self._union.mount(layers, replace(place, label=label))
        return directory.merged

    def _let_go(self, layer_id: str) -> None:
        try:
            self._settle(layer_id)
        finally:
            self._unmount(self.directory(layer_id))

    def _settle(self, layer_id: str) -> None:
        """Call it before a layer's directory is read, or unmounted, while its union may be mounted."""
        directory = self.directory(layer_id)
        if linux.mounted_device(directory.merged) is not None:
            self._union.settle(directory.merged, directory.diff)

    @staticmethod
    def _unmount(directory: LayerDirectory) -> None:
        while linux.mounted_device(directory.merged) is not None:
            _detach(directory.merged)

    # What is below

    def _chain(self, layer_id: str) -> _Chain:
        chain = self._store.chain(layer_id)
        descriptor = self._descriptor(chain[-1])
        own = len(chain) == 1
        parents = chain[1:] if own or descriptor is None else chain[1:-1]
        return _Chain(chain[-1].id, tuple(parents), descriptor, is_thin_itself=own and descriptor is not None)

    def _descriptor(self, lowest: Snapshot) -> ThinDescriptor | None:
        """Read each time it is needed: some builders write into a mounted layer instead of sending an archive."""
        return find_descriptor(self.directory(lowest.id).diff, f"layer {lowest.id[:12]}", self._union.whiteouts)

    @contextlib.contextmanager
    def _lower(self, chain: _Chain) -> Iterator[LayerStack]:
        """The layers below a layer, top first."""
        directories = []
        for parent in chain.parents:
            directory = self.directory(parent.id).diff
            directories.append(directory)
            if self._hides_below(directory):
                # Unions join root directories even if one is opaque.
                yield LayerStack(tuple(directories))
                return
        if chain.thin is None:
            yield LayerStack(tuple(directories))
            return
        with self._provider.layers(chain.thin) as real:
            yield replace(real, lower=(*directories, *self._readable(chain, real)))

    @contextlib.contextmanager
    def _below(self, chain: _Chain) -> Iterator[LayerStack | None]:
        """The same; None if nothing is below. What a thin layer names stands for it and is not below it."""
        if not chain.parents and (chain.thin is None or chain.is_thin_itself):
            yield None
            return
        with self._lower(chain) as lower:
            yield lower

    def _readable(self, chain: _Chain, real: LayerStack) -> tuple[Path, ...]:
        """Trees of a repository have their publisher's signs: add the sheets by which this union reads them."""
        if real.has_stubs:
            return real.lower
        with self._locks.holding(f"{chain.lowest}/sheets"):
            place = self.directory(chain.lowest).sheets
            return readable_layers(real.lower, self._union.whiteouts, place)

    def _hides_below(self, directory: Path) -> bool:
        with owned_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            return self._union.whiteouts.hides_below(fd)

    def _root(self, layer_id: str, chain: _Chain, lower: LayerStack) -> None:
        """Mode and owner of `/` are those of the upper directory (overlayfs.rst). Copy them from the nearest layer
        below that has its own, into all layers on the way."""
        pending = []
        for snapshot in (self._store.get(layer_id), *chain.parents):
            if snapshot.is_rooted and not (chain.is_thin_itself and snapshot.id == layer_id):
                source = self.directory(snapshot.id).diff
                break
            pending.append(snapshot.id)
        else:
            source = lower.lower[min(len(chain.parents), len(lower.lower) - 1)]
        status = source.stat()
        for waiting in reversed(pending):
            diff = self.directory(waiting).diff
            os.chown(diff, status.st_uid, status.st_gid)
            diff.chmod(stat.S_IMODE(status.st_mode))
            self._store.set_rooted(waiting)

    # Archives

    def apply(self, layer_id: str, archive: Readable) -> int:
        """Fill an empty layer from an archive, wholly or not at all; returns the bytes of its files.

        Raises UserError for an archive that cannot or must not be unpacked, or whose thin image is not for this host.
        """
        with self._locks.holding(check_id(layer_id)), mapped_os_errors(f"fill layer {layer_id}"):
            snapshot = self._store.get(layer_id)
            if snapshot.mounts:
                raise UserError(f"Layer {layer_id} is mounted and cannot be filled.")
            new = self.home / f".new-{secrets.token_hex(8)}"
            new.mkdir(mode=0o755)
            try:
                new.chmod(0o755)
                done = unpack_layer(archive, new, self._union.whiteouts)
                if snapshot.parent is None:
                    descriptor = find_descriptor(new, f"layer {layer_id[:12]}", self._union.whiteouts)
                    if descriptor is not None:
                        self._provider.check(descriptor)
                else:
                    self._liken(layer_id, new, done.implied)
                # Fails if it is not empty.
                new.rename(self.directory(layer_id).diff)
            except BaseException:
                remove_tree(new)
                raise
            self._store.set_size(layer_id, done.size_bytes)
            if done.has_root:
                self._store.set_rooted(layer_id)
            return done.size_bytes

    def _liken(self, layer_id: str, new: Path, implied: frozenset[bytes]) -> None:
        """Give implied directories the attributes that they have in the layers below; if there is a link at their path,
        those of the directory to which it leads."""
        if implied:
            with self._below(self._chain(layer_id)) as lower, self._view(layer_id, lower) as below:
                if below is not None:
                    implied = move_below_links(new, implied, below, self._union.whiteouts)
                    trees = visible_trees([Tree(new, implied), Tree(below)])
                    liken_directories(new, plan_directories(trees))

    @contextlib.contextmanager
    def diff(self, layer_id: str, parent: str | None) -> Iterator[Iterator[bytes]]:
        """The layer as an archive, in pieces, within the block. Raises UserError if that is not its parent."""
        self._checked(layer_id, parent)
        with self._tree(layer_id, self._chain(layer_id)) as tree:
            yield write_diff(tree)

    def changes(self, layer_id: str, parent: str | None) -> list[Change]:
        """The changes that the layer makes to its parent."""
        self._checked(layer_id, parent)
        chain = self._chain(layer_id)
        with (
            self._below(chain) as lower,
            self._tree(layer_id, chain, lower) as tree,
            self._view(layer_id, lower) as below,
        ):
            return list_changes(tree, below)

    def diff_size(self, layer_id: str, parent: str | None) -> int:
        """Bytes of the layer's own files."""
        snapshot = self._checked(layer_id, parent)
        if snapshot.size_bytes is not None:
            return snapshot.size_bytes
        diff = self.directory(layer_id).diff
        with UpperTree(diff, diff, self._union.whiteouts) as tree:
            return measure(tree.differences())

    def _checked(self, layer_id: str, parent: str | None) -> Snapshot:
        snapshot = self._store.get(check_id(layer_id))
        if snapshot.parent != parent:
            raise UserError(f"Layer {layer_id} has another parent than {parent or 'none'}: they cannot be compared.")
        return snapshot

    @contextlib.contextmanager
    def _tree(self, layer_id: str, chain: _Chain, lower: LayerStack | None = None) -> Iterator[UpperTree]:
        """The layer's own files. Where files may be without content, they are read through the mounted union."""
        diff = self.directory(layer_id).diff
        with contextlib.ExitStack() as stack:
            view = diff
            if chain.thin is not None and not chain.is_thin_itself:
                view = stack.enter_context(self._borrowing(layer_id, chain, lower))
            with self._locks.holding(layer_id), mapped_os_errors(f"read layer {layer_id}"):
                self._settle(layer_id)
            yield stack.enter_context(UpperTree(diff, view, self._union.whiteouts))

    @contextlib.contextmanager
    def _view(self, layer_id: str, lower: LayerStack | None) -> Iterator[Path | None]:
        """The layers below a layer, mounted for our own reading; None if there are none."""
        if lower is None:
            yield None
            return
        below = self.directory(layer_id).below
        with self._locks.holding(f"{layer_id}/below"):
            self._union.mount(lower, Place(below))
            try:
                yield below
            finally:
                _detach(below)

    def describe(self, layer_id: str) -> dict[str, str]:
        """The directories of a layer, as engines show them."""
        chain, directory = self._chain(check_id(layer_id)), self.directory(layer_id)
        told = {"UpperDir": directory.diff, "WorkDir": directory.work, "MergedDir": directory.merged}
        described = {name: os.fspath(path) for name, path in told.items()}
        lower = [os.fspath(self.directory(parent.id).diff) for parent in chain.parents]
        if lower:
            described["LowerDir"] = ":".join(lower)
        if chain.thin is not None:
            described["ThinLayers"] = " ".join(layer.url for layer in reversed(chain.thin.layers))
        return described

    def is_on_thin(self, layer_id: str) -> bool:
        """Whether a thin layer is at the bottom of a chain, and not the layer itself."""
        chain = self._chain(check_id(layer_id))
        return chain.thin is not None and not chain.is_thin_itself

    @property
    def count(self) -> int:
        return len(self._store.all())


class _Locks:
    """A lock for each name, kept while a thread holds or wants it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, tuple[threading.RLock, int]] = {}

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        with self._lock:
            lock, users = self._locks.get(name) or (threading.RLock(), 0)
            self._locks[name] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._locks.pop(name)
                if users > 1:
                    self._locks[name] = (lock, users - 1)


def _detach(target: Path) -> None:
    linux.umount2(target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)


def _mount_points(home: Path) -> set[Path]:
    prefix = os.fsencode(home.resolve()) + b"/"
    return {
        home / os.fsdecode(mount.target[len(prefix) :]) for mount in read_mounts() if mount.target.startswith(prefix)
    }
