"""`mica convert` and `mica inspect`: from images to repositories and thin images, and what those consist of."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import (
    AuthfileOption,
    CacheOption,
    CertsOption,
    ConfigOption,
    FqrnArgument,
    InsecureOption,
    JsonOption,
    KeyOption,
    ProxyOption,
    QuotaOption,
    StateOption,
    UrlOption,
    WaitOption,
)
from mica.cli.output import print_facts, print_json, print_table, size_text

if TYPE_CHECKING:
    from mica.cli.outputs import Output
    from mica.cli.registries import Access
    from mica.oci.models import Descriptor
    from mica.thin.convert import Conversion, PlannedLayer
    from mica.thin.converter import Converter, OpenedSource, Platforms
    from mica.thin.trace import ProgramTrace

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="docker://REF (its tag may be a pattern such as 3.*), oci:DIR[:TAG], oci-archive:FILE[:TAG], "
        "docker-archive:FILE[:REF], docker-daemon:REF."
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", help="Where to put the thin image: oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker://REF."
    ),
]
PlatformOption = Annotated[str | None, typer.Option(help="Which image of an index, such as linux/amd64.")]


def convert(
    source: SourceArgument,
    fqrn: FqrnArgument,
    state: StateOption,
    tag: Annotated[
        str | None, typer.Option("--tag", "-t", help="Name of the image in the repository; default: that of SOURCE.")
    ] = None,
    output: OutputOption = None,
    platform: PlatformOption = None,
    all_platforms: Annotated[
        bool, typer.Option("--all-platforms", help="All images of an index; the thin images become an index too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, with sizes, and change nothing.")
    ] = False,
    trace: Annotated[
        list[Path] | None,
        typer.Option(help="What a program asks for at its start, from `mica run --trace`; nodes fetch it ahead."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=16, help="Layers that are made side by side.")] = 2,
    wait_s: WaitOption = 300,
    max_layer_gib: Annotated[int, typer.Option(min=1, help="Refuse a layer that unpacks to more.")] = 1024,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish an image's layers in a repository, each once, and make the thin image that names them.

    A layer that is in the repository is not downloaded. What was finished when a conversion failed is used by the next.
    """
    from mica.cli.bars import LayerBars
    from mica.cli.outputs import parse_output
    from mica.cli.registries import Access
    from mica.cli.tracing import read_traces
    from mica.errors import UsageError
    from mica.oci.source import expand_source
    from mica.publish.manager import ReleaseManager
    from mica.thin.building import ConversionLimits
    from mica.thin.converter import Converter, ConverterOptions

    target = parse_output(output) if output else None
    access = Access(insecure, authfile, certs)
    platforms = _platforms(platform, every=all_platforms)
    sources = expand_source(source, options=access.source_options())
    if len(sources) > 1 and (tag or (target and target.tag)):
        raise UsageError(f"{source} stands for {len(sources)} images, which cannot all have one tag.")
    if len(sources) > 1 and trace:
        raise UsageError(f"{source} stands for {len(sources)} images, and a trace is one image's.")
    traces = read_traces(trace or [])
    limits = ConversionLimits(max_layer_bytes=max_layer_gib << 30)
    options = ConverterOptions(access.source_options(), limits, jobs, wait_s)
    results = []
    with ReleaseManager.open(state, fqrn) as manager, LayerBars() as bars:
        converter = Converter(manager, options, observer=bars)
        one = _One(converter, platforms, access, target, fqrn, traces)
        for name in sources:
            results.append(one.plan(name, tag) if dry_run else one.convert(name, tag))
            if not as_json and len(sources) > 1:
                sys.stderr.write(f"mica: {name}: done\n" if not dry_run else "")
    if as_json:
        print_json(results[0] if len(results) == 1 else {"repository": fqrn, "images": results})
    else:
        for result in results:
            (_show_plan if dry_run else _show)(result)


def _platforms(text: str | None, *, every: bool) -> "Platforms":
    from mica.errors import UsageError
    from mica.oci.platforms import Platform
    from mica.thin.converter import Platforms

    if text and every:
        raise UsageError("--platform and --all-platforms exclude each other.")
    return Platforms((Platform.parse(text),) if text else (), every)


class _One:
    """One image after the other, each to the facts that are printed."""

    def __init__(
        self, converter: "Converter", platforms: "Platforms", access: "Access", target: "Output | None", fqrn: str,
        traces: "list[ProgramTrace]",
    ) -> None:  # fmt: skip
        self._converter = converter
        self._platforms = platforms
        self._access = access
        self._target = target
        self._fqrn = fqrn
        self._traces = traces

    def convert(self, source: str, tag: str | None) -> dict[str, object]:
        with self._converter.opened(source, self._platforms, name=tag or "") as opened:
            conversion = self._converter.convert(opened, self._traces)
            written = self._write(opened)
            return _facts(opened, conversion, self._fqrn, written)

    def plan(self, source: str, tag: str | None) -> dict[str, object]:
        with self._converter.opened(source, self._platforms, name=tag or "") as opened:
            plan = self._converter.plan(opened)
        layers = [
            {"digest": one.layer.digest, "compressed_bytes": one.layer.size, "state": str(one.state)} for one in plan
        ]
        return {
            "image": str(opened.reference), "repository": self._fqrn, "digest": opened.digest,
            "platforms": [str(one.platform) for one in opened.images],
            "layers": layers, "download_bytes": _to_download(plan),
        }  # fmt: skip

    def _write(self, opened: "OpenedSource") -> "Descriptor | None":
        from mica.cli.outputs import open_output

        if self._target is None:
            return None
        tag = self._target.tag or opened.reference.tag or "latest"
        with open_output(self._target, self._access.options(), tag=tag) as writer:
            return self._converter.write(opened, writer, tag=tag)


def _to_download(plan: "list[PlannedLayer]") -> int:
    from mica.thin.convert import LayerState

    return sum(one.layer.size for one in plan if one.state is LayerState.MISSING)


def _facts(
    opened: "OpenedSource", conversion: "Conversion", fqrn: str, written: "Descriptor | None"
) -> dict[str, object]:
    return {
        "image": str(opened.reference), "repository": fqrn, "revision": conversion.revision,
        "platforms": [str(one.platform) for one in opened.images],
        "layers": len(conversion.layers), "new_layers": sum(layer.is_new for layer in conversion.layers),
        "compressed_bytes": sum(layer.size for layer in conversion.layers),
        "new_objects": conversion.new_objects, "stored_bytes": conversion.stored_bytes,
        "thin_image": written.digest if written else None,
        "changes": {digest: dict(changes) for digest, changes in conversion.changes.items()},
        "manifest_digest": opened.main.image.manifest_digest,
    }  # fmt: skip


def _show(result: dict[str, object]) -> None:
    from mica.thin.layout import facts_path

    changed = result.pop("changes")
    del result["manifest_digest"]
    platforms = result["platforms"]
    assert isinstance(changed, dict)
    assert isinstance(platforms, list)
    print_facts({**result, "platforms": ", ".join(platforms)})
    for digest, changes in changed.items():
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in changes.items() if count)
        if told:
            sys.stderr.write(f"mica: layer {digest[:19]}: {told} (listed in {facts_path(digest).decode()})\n")


def _show_plan(result: dict[str, object]) -> None:
    layers, total = result["layers"], result["download_bytes"]
    assert isinstance(layers, list)
    assert isinstance(total, int)
    rows = [(one["digest"][7:19], size_text(one["compressed_bytes"]), one["state"]) for one in layers]
    print_table(("layer", "size", "state"), rows, title=str(result["image"]))
    sys.stdout.write(f"To download: {size_text(total)}\n")


def inspect(
    image: Annotated[str, typer.Argument(help="A thin image, a file thin.json, or a name kept in a repository.")],
    state: StateOption,
    platform: PlatformOption = None,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a thin image consists of."""
    from mica.cli.images import find_image
    from mica.cli.places import Places

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    found = find_image(image, places, platform)
    layers = [{"digest": layer.digest, "url": layer.url} for layer in found.descriptor.layers]
    if as_json:
        print_json({"origin": found.descriptor.origin, "layers": layers, "config": found.config})
        return
    run = found.config.get("config") or {}
    command = [word for name in ("Entrypoint", "Cmd") for word in _words(run.get(name))]
    print_facts({"origin": found.descriptor.origin, "command": command})
    print_table(("digest", "url"), [(layer["digest"][:12], layer["url"]) for layer in layers])


def _words(value: object) -> list[str]:
    """Old images have one text instead of a list."""
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []
