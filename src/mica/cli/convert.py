"""`mica convert` and `mica inspect`: from images to repositories and thin images, and what those consist of."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import (
    CacheOption,
    ConfigOption,
    FqrnArgument,
    JsonOption,
    KeyOption,
    ProxyOption,
    QuotaOption,
    StateOption,
    UrlOption,
)
from mica.cli.output import print_facts, print_json, print_table, progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from mica.oci.image import LayerSource

SourceArgument = Annotated[
    str,
    typer.Argument(help="docker://REF, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF]."),
]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", "-o", help="Where to write the thin image: oci:DIR[:TAG] or oci-archive:FILE[:TAG]."),
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
    max_layer_gib: Annotated[int, typer.Option(min=1, help="Refuse a layer that unpacks to more.")] = 1024,
    as_json: JsonOption = False,
) -> None:
    """Publish an image's layers in a repository, each once, and make the thin image that names them."""
    import json

    from mica.cli.images import converted_reference, open_source, parse_output, write_output
    from mica.publish.manager import ReleaseManager
    from mica.thin.convert import ConversionLimits, describe
    from mica.thin.convert import convert as convert_image
    from mica.thin.layout import facts_path
    from mica.thin.record import ImageRecord

    target = parse_output(output) if output else None
    with open_source(source, platform) as image, ReleaseManager.open(state, fqrn) as manager:
        reference = converted_reference(tag, image, source)
        descriptor = describe(image, fqrn, str(reference))
        record = ImageRecord(
            reference, image.manifest_digest, json.loads(image.manifest.raw), image.config.document(), descriptor
        )
        limits = ConversionLimits(max_layer_bytes=max_layer_gib << 30)
        conversion = convert_image(image, manager, record=record, observer=_Bars(), limits=limits)
        written = write_output(target, record, image.config) if target else None
    facts: dict[str, object] = {
        "image": str(reference), "repository": fqrn, "revision": conversion.revision,
        "layers": len(conversion.layers), "new_layers": sum(layer.is_new for layer in conversion.layers),
        "compressed_bytes": sum(layer.size for layer in conversion.layers),
        "new_objects": conversion.new_objects, "stored_bytes": conversion.stored_bytes, "thin_image": written,
    }  # fmt: skip
    if as_json:
        print_json({**facts, "changes": conversion.changes, "manifest_digest": image.manifest_digest})
        return
    print_facts(facts)
    for digest, changes in conversion.changes.items():
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in changes.items() if count)
        if told:
            sys.stderr.write(f"mica: layer {digest[:19]}: {told} (listed in {facts_path(digest).decode()})\n")


class _Bars:
    @contextlib.contextmanager
    def layer(self, number: int, count: int, layer: "LayerSource") -> "Iterator[Callable[[int], None]]":
        with progress(f"Layer {number}/{count} {layer.digest[7:19]}") as done:
            yield done


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
