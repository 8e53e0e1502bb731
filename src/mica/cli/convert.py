"""`mica convert` publishes images in a repository and makes thin images; `mica inspect` shows what a thin image
consists of."""

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
    JobsOption,
    JsonOption,
    KeyOption,
    ProxyOption,
    QuotaOption,
    StateOption,
    UrlOption,
    WaitOption,
)
from mica.cli.printing import print_facts, print_json, print_table
from mica.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mica.cli.outputs import Output
    from mica.cli.registries import Access
    from mica.convert.converter import Converter, OpenedSource, Platforms
    from mica.convert.plan import PlannedLayer
    from mica.convert.publishing import Conversion
    from mica.oci.models import Descriptor
    from mica.thin.trace import ProgramTrace

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="docker://REF (its tag may be a pattern such as 3.*), oci:DIR[:TAG], oci-archive:FILE[:TAG], "
        "docker-archive:FILE[:REF], docker-daemon:REF; or a NAME as podman takes it (short names: registries.conf)."
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
        str | None,
        typer.Option(
            "--tag",
            "-t",
            help="Name of the image in the repository; default: that of SOURCE. oci:DIR alone has none.",
        ),
    ] = None,
    output: OutputOption = None,
    platform: PlatformOption = None,
    all_platforms: Annotated[
        bool, typer.Option("--all-platforms", help="All images of an index; the thin images become an index too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the steps and sizes, and change nothing.")] = False,
    trace: Annotated[
        list[Path] | None,
        typer.Option(help="Trace of a program's start, from `mica run --trace`; nodes fetch these files ahead."),
    ] = None,
    jobs: JobsOption = 2,
    wait_s: WaitOption = 300,
    config: ConfigOption = None,
    max_layer_gib: Annotated[
        int, typer.Option(min=1, help="Refuse a layer that unpacks to more than this many GiB.")
    ] = 1024,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish an image's layers in a repository, each once, and make the thin image that names them.

    A layer that is in the repository is not downloaded. If a conversion fails, the next one uses the layers that were
    finished. If the configuration names a queue (section [workers]), workers make layers too; with --jobs 0 they make
    all.
    """
    from mica.cli.bars import LayerBars
    from mica.cli.outputs import parse_output
    from mica.cli.queues import maker_of, opened_queue
    from mica.cli.registries import Access
    from mica.cli.tracing import read_traces
    from mica.convert.converter import Converter, ConverterOptions
    from mica.convert.layerbuilder import ConversionLimits
    from mica.errors import UsageError
    from mica.oci.image import NoImageError
    from mica.oci.source import expand_source
    from mica.publish.manager import ReleaseManager

    target = parse_output(output) if output else None
    access = Access(insecure, authfile, certs, config)
    platforms = _platforms(platform, every=all_platforms)
    sources = expand_source(source, options=access.source_options())
    if len(sources) > 1 and (tag or (target and target.tag)):
        raise UsageError(f"{source} stands for {len(sources)} images, which cannot all have one tag.")
    if len(sources) > 1 and trace:
        raise UsageError(f"{source} stands for {len(sources)} images, but a trace belongs to one image.")
    traces = read_traces(trace or [])
    limits = ConversionLimits(max_layer_bytes=max_layer_gib << 30)
    results = []
    with opened_queue(config) as queue, ReleaseManager.open(state, fqrn) as manager, LayerBars() as bars:
        options = ConverterOptions(
            access.source_options(), limits, jobs, wait_s, open_maker=maker_of(queue, limits, jobs=jobs)
        )
        converter = Converter(manager, options, observer=bars)
        one = _One(converter, platforms, access, target, fqrn, traces)
        for name in sources:
            try:
                results.append(one.plan(name, tag) if dry_run else one.convert(name, tag))
            except NoImageError as error:
                if len(sources) == 1:
                    raise
                sys.stderr.write(f"mica: {name}: left out: {error}\n")
                continue
            if not as_json and len(sources) > 1:
                sys.stderr.write(f"mica: {name}: done\n" if not dry_run else "")
    if as_json:
        print_json(results[0] if len(sources) == 1 else {"repository": fqrn, "images": results})
    else:
        for result in results:
            (_show_plan if dry_run else _show)(result)


def _platforms(text: str | None, *, every: bool) -> "Platforms":
    from mica.convert.converter import Platforms
    from mica.errors import UsageError
    from mica.oci.platforms import Platform

    if text and every:
        raise UsageError("--platform and --all-platforms exclude each other.")
    return Platforms((Platform.parse(text),) if text else (), every)


class _One:
    """Convert one image after the other. Returns the facts of each, which are printed."""

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
            written = self._write(opened, conversion)
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

    def _write(self, opened: "OpenedSource", conversion: "Conversion") -> "Descriptor | None":
        from mica.cli.outputs import open_output

        if self._target is None:
            return None
        tag = self._target.tag or opened.reference.tag or "latest"
        with open_output(self._target, self._access.options(), tag=tag) as writer:
            return self._converter.write(opened, conversion, writer, tag=tag)


def _to_download(plan: "Sequence[PlannedLayer]") -> int:
    from mica.convert.plan import LayerState

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
    if result["thin_image"] is None:
        del result["thin_image"]
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
    rows = [(one["digest"][7:19], format_size(one["compressed_bytes"]), one["state"]) for one in layers]
    print_table(("layer", "size", "state"), rows, title=str(result["image"]))
    sys.stdout.write(f"To download: {format_size(total)}\n")


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
    """Show what a thin image consists of."""
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
