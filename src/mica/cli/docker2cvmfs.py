"""`docker2cvmfs`: the converter under the name and with the verbs and flags of the tool of 2017.

Three things differ from the old tool. Layers are always below `/.layers`; `--subdirectory` is accepted and has no
effect. Thin images go into a registry or a layout instead of a Docker daemon. `push` is new.
"""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.commands import Commands
from mica.cli.options import AuthfileOption, CertsOption, InsecureOption, StateOption
from mica.cli.printing import print_json
from mica.errors import UsageError

if TYPE_CHECKING:
    from mica.cli.registries import Access

_HUB_URLS = ("https://registry-1.docker.io/v2", "https://registry.hub.docker.com/v2", "https://index.docker.io/v2")
_SUBDIRECTORY = "layers/"

app = typer.Typer(
    name="docker2cvmfs",
    cls=Commands,
    help="Convert Docker images into a CernVM-FS repository and thin images.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 integrity, 4 temporary. `mica` does the same with more options.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="REPOSITORY:TAG, as in library/ubuntu:latest.")]
RepositoryArgument = Annotated[
    str, typer.Argument(metavar="REPOSITORY", help="The CernVM-FS repository, such as images.example.org.")
]
RegistryOption = Annotated[str, typer.Option("--registry", help="URL of the registry for images that name none.")]
SubdirectoryOption = Annotated[
    str, typer.Option("--subdirectory", "-s", help="Has no effect: layers are always below /.layers.")
]
_DEFAULT_REGISTRY = _HUB_URLS[0]


@app.callback()
def _common(context: typer.Context, registry: RegistryOption = _DEFAULT_REGISTRY) -> None:
    context.obj = registry


@app.command("thin", epilog="Example: docker2cvmfs thin library/ubuntu:latest images.example.org")
def thin(
    context: typer.Context,
    image: ImageArgument,
    repository: RepositoryArgument,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
) -> None:
    """Print the thin image (thin.json) of an image, whether its layers are in the repository yet or not."""
    from mica.cli.registries import Access
    from mica.convert.publishing import describe
    from mica.oci.source import open_image
    from mica.thin.descriptor import format_descriptor

    options = Access(insecure, authfile, certs).source_options()
    with open_image(_source(context.obj, image), options=options) as opened:
        descriptor = describe(opened, _fqrn(repository), str(opened.reference or opened.name))
    sys.stdout.write(format_descriptor(descriptor).decode("utf-8"))


@app.command(
    "make-thin", epilog="Example: docker2cvmfs make-thin -i library/r-base:4.3 -o reg.example.org/thin/r:1 -r a.b.org"
)
def make_thin(
    context: typer.Context,
    state: StateOption,
    input_reference: Annotated[
        str, typer.Option("--input-reference", "-i", help="Input reference [REPOSITORY:TAG] to make thin.")
    ],
    output_reference: Annotated[
        str,
        typer.Option("--output-reference", "-o", help="REPOSITORY:TAG to push the thin image to, or oci:DIR[:TAG]."),
    ],
    repository: Annotated[str, typer.Option("--repository", "-r", help="Repository that stores the layers.")],
    subdirectory: SubdirectoryOption = _SUBDIRECTORY,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
) -> None:
    """Publish an image's layers in a repository and push the thin image."""
    from mica.cli.outputs import LOCAL_KINDS
    from mica.cli.registries import Access

    output = output_reference
    if not output.startswith("docker://") and output.partition(":")[0] not in LOCAL_KINDS:
        output = f"docker://{output}"
    _convert(context.obj, input_reference, repository, subdirectory, state, Access(insecure, authfile, certs), output)


@app.command("pull", epilog="Example: docker2cvmfs pull library/ubuntu:latest images.example.org")
def pull(
    context: typer.Context,
    image: ImageArgument,
    repository: RepositoryArgument,
    state: StateOption,
    subdirectory: SubdirectoryOption = _SUBDIRECTORY,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
) -> None:
    """Publish an image's layers in a repository without a thin image."""
    from mica.cli.registries import Access

    _convert(context.obj, image, repository, subdirectory, state, Access(insecure, authfile, certs), None)


@app.command("push", epilog="Example: docker2cvmfs push oci:thin:r registry.example.org/thin/r-base:4.3")
def push(
    thin_image: Annotated[
        str, typer.Argument(metavar="THIN", help="A thin image (oci:DIR:TAG, …), or a name kept in a repository.")
    ],
    reference: Annotated[str, typer.Argument(metavar="REF", help="Where it goes: HOST/NAME:TAG.")],
    state: StateOption,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
) -> None:
    """Push a thin image into a registry."""
    from mica.cli.places import Places
    from mica.cli.push import push_thin
    from mica.cli.registries import Access

    places = Places(state, hint="Add it to the configuration.")
    print_json({"thin_image": push_thin(thin_image, reference, places, Access(insecure, authfile, certs))})


@app.command("manifest", epilog="Example: docker2cvmfs manifest library/ubuntu:latest")
def manifest(
    context: typer.Context,
    image: ImageArgument,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
) -> None:
    """Print an image's manifest."""
    from mica.cli.registries import Access
    from mica.oci.source import open_image

    options = Access(insecure, authfile, certs).source_options()
    with open_image(_source(context.obj, image), options=options) as opened:
        print_json(json.loads(opened.manifest.raw))


@app.command("config", epilog="Example: docker2cvmfs config library/ubuntu:latest")
def config(
    context: typer.Context,
    image: ImageArgument,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
) -> None:
    """Print an image's configuration."""
    from mica.cli.registries import Access
    from mica.oci.source import open_image

    options = Access(insecure, authfile, certs).source_options()
    with open_image(_source(context.obj, image), options=options) as opened:
        print_json(opened.config.document())


def _convert(
    registry: str, image: str, repository: str, subdirectory: str, state: "object", access: "Access", output: str | None
) -> None:
    from pathlib import Path

    from mica.cli.convert import convert

    if subdirectory != _SUBDIRECTORY:
        sys.stderr.write(f"docker2cvmfs: --subdirectory {subdirectory} has no effect: layers are below /.layers.\n")
    assert isinstance(state, Path)
    convert(
        _source(registry, image), _fqrn(repository), state, output=output,
        insecure=access.insecure, authfile=access.authfile, certs=access.certs, as_json=True,
    )  # fmt: skip


def _fqrn(repository: str) -> str:
    """The old tool took a path behind the repository's name. Layers are never below that path here."""
    return repository.removeprefix("/cvmfs/").partition("/")[0]


def _source(registry: str, image: str) -> str:
    """An image of the registry, unless it names a source or a registry of its own."""
    from mica.oci.source import SCHEMES, scheme_of

    # `docker:27` is an image.
    if image.startswith("docker://") or scheme_of(image) in SCHEMES - {"docker"}:
        return image
    if registry.rstrip("/") in _HUB_URLS:
        return f"docker://{image}"
    scheme, separator, rest = registry.partition("://")
    host = (rest if separator else registry).strip("/").removesuffix("/v2")
    if not host or "/" in host or (separator and scheme not in {"http", "https"}):
        raise UsageError(f"{registry!r} is not the URL of a registry, such as {_DEFAULT_REGISTRY}.")
    return f"docker://{host}/{image}"


def main() -> None:
    """Entry point of the console script."""
    from mica.cli.main import run_app
    from mica.signals import exit_program

    exit_program(run_app(sys.argv[1:], app))


if __name__ == "__main__":
    main()
