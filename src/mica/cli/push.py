"""`mica push`: a thin image into a registry."""

from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import (
    AuthfileOption,
    CacheOption,
    CertsOption,
    ConfigOption,
    InsecureOption,
    JsonOption,
    KeyOption,
    ProxyOption,
    QuotaOption,
    StateOption,
    UrlOption,
)
from mica.cli.printing import print_facts, print_json
from mica.errors import UserError

if TYPE_CHECKING:
    from mica.cli.places import Places
    from mica.cli.registries import Access


def push(
    thin: Annotated[
        str, typer.Argument(help="A thin image (oci:DIR:TAG, docker://REF, …), or a name kept in a known repository.")
    ],
    reference: Annotated[str, typer.Argument(metavar="REF", help="Where it goes, such as registry.example.org/a/b:1.")],
    state: StateOption,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Push a thin image into any registry, with the configuration of the original."""
    from mica.cli.places import Places
    from mica.cli.registries import Access

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    digest = push_thin(thin, reference, places, Access(insecure, authfile, certs, config))
    facts: dict[str, object] = {"pushed": reference.removeprefix("docker://"), "thin_image": digest}
    (print_json if as_json else print_facts)(facts)


def push_thin(name: str, target: str, places: "Places", access: "Access") -> str:
    """Push a thin image as it is, or make it from a name kept in a repository. Returns the digest of its manifest."""
    from mica.cli.images import find_image, source_of
    from mica.cli.outputs import open_output, parse_output
    from mica.oci.push import copy_images
    from mica.oci.reference import Reference
    from mica.oci.registry import open_registry
    from mica.oci.source import open_choice, scheme_of
    from mica.thin.image import require_thin, write_thin_image

    # A name without a scheme is at Docker's registry, to which anybody may push.
    if scheme_of(target) not in {"", "docker"} or "://" in target.removeprefix("docker://"):
        raise UserError(
            f"{target!r} is not in a registry, and mica push writes to registries only.",
            hint="Give REGISTRY/NAME:TAG; mica convert --output writes layouts and archives.",
        )
    output = parse_output(f"docker://{target.removeprefix('docker://')}")
    tag = output.tag or "latest"
    if (source := source_of(name)) is not None:
        with open_choice(source, options=access.source_options()) as choice, open_registry(access.options()) as client:
            images = choice.every()
            for one in images:
                require_thin(one.image)
            return copy_images(images, client, Reference.parse(f"{output.place}:{tag}")).digest
    thin = find_image(name, places, None)
    with open_output(output, access.options(), tag=tag) as writer:
        return write_thin_image(writer, thin, tag=tag).digest
