"""`mica repo …`: create, fill, serve, look into and check repositories."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli import repair, replicate, repogc, repohistory, repomove, repotag, resign
from mica.cli.bars import progress
from mica.cli.commands import Commands
from mica.cli.options import (
    CacheOption,
    ConfigOption,
    ExternalProxyOption,
    ExternalUrlOption,
    FqrnArgument,
    JsonOption,
    KeyOption,
    ProxyOption,
    QuotaOption,
    S3AddressingOption,
    S3CredentialsOption,
    S3EndpointOption,
    S3RegionOption,
    StateOption,
    UrlOption,
    parse_address,
    repository_path,
    s3_options,
)
from mica.cli.printing import print_facts, print_json, print_table
from mica.errors import UsageError, UserError
from mica.texts import printable, printable_path

if TYPE_CHECKING:
    from mica.digest import Algorithm
    from mica.repo.cutting import ChunkRule
    from mica.repo.objects import Compression

_YEAR_S = 366 * 86400
app = typer.Typer(cls=Commands, help="Create, fill, serve, look into and check repositories.", no_args_is_help=True)
app.add_typer(repotag.app, name="tag")
app.command("history", epilog="Example: mica repo history images.example.org")(repohistory.history)
app.command("diff", epilog="Example: mica repo diff images.example.org release-1 release-2")(repohistory.diff)
app.command(
    "repair", epilog="Example: mica repo repair images.example.org --from http://HOST/cvmfs/images.example.org"
)(repair.repair)
app.command("move", epilog="Example: mica repo move images.example.org s3://bucket/images.example.org")(repomove.move)
app.command("gc", epilog="Example: mica repo gc images.example.org --dry-run")(repogc.gc)
app.command("rollback", epilog="Example: mica repo rollback images.example.org release-1")(repohistory.rollback)


@app.command(epilog="Example: mica repo create images.example.org --storage /srv/cvmfs/images.example.org")
def create(
    fqrn: FqrnArgument,
    storage: Annotated[
        str,
        typer.Option(
            help="Directory that a web server shall publish, made if missing; or s3://BUCKET/PREFIX in a bucket of S3."
        ),
    ],
    state: StateOption,
    keys: Annotated[
        Path | None, typer.Option(help="Directory of the keys; existing ones are used. Default: below --state.")
    ] = None,
    hash_name: Annotated[str, typer.Option("--hash", help="sha1, rmd160 or shake128.")] = "sha1",
    compression: Annotated[str, typer.Option(help="zlib or none.")] = "zlib",
    chunk_sizes: Annotated[
        str,
        typer.Option(
            help="Smallest, average and largest chunk of large files, in KiB. A fourth number is the size of chunks of "
            "programs and libraries. The stock server has 4096,8192,16384."
        ),
    ] = "256,512,1024,64",
    ttl_s: Annotated[
        int, typer.Option("--ttl", min=1, max=_YEAR_S, help="Seconds until clients look for a newer revision.")
    ] = 240,
    auto_tag: Annotated[bool, typer.Option("--auto-tag", help="Name every revision by its time.")] = False,
    tag_directories: Annotated[
        bool, typer.Option("--tag-directories", help="Show the revision of every tag below /.cvmfs/snapshots.")
    ] = False,
    s3_endpoint: S3EndpointOption = "",
    s3_region: S3RegionOption = "",
    s3_addressing: S3AddressingOption = "path",
    s3_credentials: S3CredentialsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make keys, whitelist and the first, empty revision of a repository."""
    from mica.publish.manager import ReleaseManager, create_repository
    from mica.publish.rules import ObjectRules
    from mica.publish.settings import RepositorySettings, state_directory
    from mica.publish.tags import set_tag_directories
    from mica.store.opening import parse_storage

    rules = ObjectRules(_algorithm(hash_name), _compression(compression), _chunk_rule(chunk_sizes))
    where = keys or state_directory(state, fqrn) / "keys"
    s3 = s3_options(s3_endpoint, s3_region, s3_addressing, s3_credentials)
    settings = RepositorySettings(fqrn, parse_storage(storage), where.absolute(), rules, ttl_s, auto_tag, s3=s3)
    manifest = create_repository(state, settings, {"description": fqrn})
    if tag_directories:
        with ReleaseManager.open(state, fqrn) as manager:
            manifest = set_tag_directories(manager, wanted=True)
    facts = {
        "repository": fqrn, "storage": settings.storage, "public_key": str(settings.key_path("pub")),
        "master_key": str(settings.key_path("masterkey")), "revision": manifest.revision,
    }  # fmt: skip
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command(epilog="Example: mica repo ingest images.example.org data.tar /data --catalog")
def ingest(
    fqrn: FqrnArgument,
    tar: Annotated[
        str,
        typer.Argument(help="A tar archive, which may be compressed by gzip, zstd, xz or bzip2; - is standard input."),
    ],
    path: Annotated[str, typer.Argument(help="Directory in the repository; made if missing.")],
    state: StateOption,
    catalog: Annotated[bool, typer.Option("--catalog", "-c", help="Give PATH a nested catalog of its own.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish the members of a tar. Existing directories keep their other entries; other files are replaced."""
    from mica.files import mapped_os_errors
    from mica.oci.packedfiles import unpacked
    from mica.publish.ingest import merge_archive, read_archive
    from mica.publish.layertree import Mode
    from mica.publish.manager import ReleaseManager
    from mica.tarstream import DEFAULT_LIMITS

    base = repository_path(path)
    with mapped_os_errors(f"read {tar}"):
        stream = sys.stdin.buffer if tar == "-" else open(tar, "rb", buffering=0)  # noqa: SIM115 - closed below
    with stream, ReleaseManager.open(state, fqrn) as manager, manager.transaction() as transaction:
        with progress(f"Ingest {tar}") as done:
            archive = read_archive(
                unpacked(stream, tar if tar != "-" else "Standard input"), transaction.objects,
                mode=Mode.PLAIN, limits=DEFAULT_LIMITS, require_end=True, progress=done,
            )  # fmt: skip
        merge_archive(archive, transaction.catalogs, base, nested=catalog, marker=transaction.marker())
    assert transaction.published is not None
    facts: dict[str, object] = {
        "repository": fqrn, "path": printable_path(base), "revision": transaction.published.revision,
        "new_objects": transaction.objects.new_objects, "stored_bytes": transaction.objects.stored_bytes,
        **archive.report.to_json(),
    }  # fmt: skip
    if as_json:
        print_json(facts)
    else:
        counts = archive.report.counts
        print_facts({key: facts[key] for key in ("repository", "path", "revision", "new_objects", "stored_bytes")})
        print_facts({"entries": sum(counts.values()), "bytes": archive.report.bytes})
        for name in ("split_hardlinks", "dropped_xattrs"):
            changed = getattr(archive.report, name).total
            if changed:
                sys.stderr.write(
                    f"mica: {changed} {name.replace('_', ' ')}: the format cannot hold them (--json lists)\n"
                )


@app.command(epilog="Example: mica repo serve images.example.org --listen 127.0.0.1:8000")
def serve(
    fqrn: Annotated[list[str], typer.Argument(help="Repositories published here.")],
    state: StateOption,
    listen: Annotated[str, typer.Option(help="Address and port; port 0 takes a free one.")] = "127.0.0.1:8000",
) -> None:
    """Serve repositories over HTTP, for tests and small sites. Prints the URL and runs until it is stopped."""
    from mica.httpbase import serving
    from mica.publish.settings import read_settings
    from mica.signals import EndSignals
    from mica.store.httpserver import RepositoryServer
    from mica.store.opening import local_directory, open_store

    storages = {}
    for name in fqrn:
        storage = read_settings(state, name).storage
        directory = local_directory(storage)
        if directory is None:
            raise UserError(f"{name} is in {storage}, which this command cannot serve.")
        with open_store(storage) as store:
            store.check_there()
        storages[name] = directory
    host, port = parse_address(listen)
    try:
        server = RepositoryServer((host, port), storages)
    except OSError as error:
        raise UserError(f"Cannot listen on {listen}: {error.strerror}.") from error

    with EndSignals() as end, serving(server):
        for name in fqrn:
            print(f"{server.url}/cvmfs/{name}", flush=True)  # noqa: T201 - the one line others wait for
        end.wait()


@app.command(epilog="Example: mica repo ls images.example.org /data -l")
def ls(
    fqrn: FqrnArgument,
    state: StateOption,
    path: Annotated[str, typer.Argument(help="Directory or file in the repository.")] = "/",
    long: Annotated[bool, typer.Option("--long", "-l", help="Mode, owner, size, time and link target.")] = False,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a directory of a repository."""
    from mica.cli.browse import Browser
    from mica.cli.places import Places

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    with Browser.open(places, fqrn) as browser:
        listed = browser.entries(repository_path(path))
    if as_json:
        print_json([facts for _, facts in listed])
    elif long:
        rows = [(f["mode"], f["links"], f["uid"], f["gid"], f["size"], f["mtime"], f["shown"]) for _, f in listed]
        print_table(("mode", "links", "uid", "gid", "size", "mtime", "name"), rows)
    else:
        for name, _ in listed:
            print(printable(name))  # noqa: T201 - a listing


@app.command(epilog="Example: mica repo cat images.example.org /etc/os-release")
def cat(
    fqrn: FqrnArgument,
    path: Annotated[str, typer.Argument(help="A file in the repository.")],
    state: StateOption,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    external_urls: ExternalUrlOption = None,
    external_proxies: ExternalProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
) -> None:
    """Write the content of a file to standard output."""
    from mica.cli.browse import Browser
    from mica.cli.places import Places

    places = Places(
        state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota,
        external_urls=external_urls, external_proxies=external_proxies,
    )  # fmt: skip
    with Browser.open(places, fqrn) as browser:
        for block in browser.read(repository_path(path)):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()


@app.command(epilog="Example: mica repo stat images.example.org /usr/bin/R --json")
def stat(
    fqrn: FqrnArgument,
    path: Annotated[str, typer.Argument(help="Any path in the repository.")],
    state: StateOption,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all facts of a path in the catalog: attributes, object, chunks, extended attributes."""
    from mica.cli.browse import Browser
    from mica.cli.places import Places

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    with Browser.open(places, fqrn) as browser:
        facts = browser.stat(repository_path(path))
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command(epilog="Example: mica repo check images.example.org --hash")
def check(
    where: Annotated[str, typer.Argument(metavar="FQRN|URL", help="A repository, by name or by the URL of its root.")],
    state: StateOption,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The repository's name, if it is not the last part of the URL, as on a replica."),
    ] = None,
    hash_objects: Annotated[
        bool, typer.Option("--hash", help="Also read every object and compare its digest.")
    ] = False,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a published repository against every rule of the format. The exit code is 3 if anything is wrong."""
    from mica.cli.checking import check_place
    from mica.cli.places import Places

    urls = [where] if "://" in where else None
    if name is not None and urls is None:
        raise UsageError("--name is only for a URL.")
    fqrn = name or where.rstrip("/").rpartition("/")[2]
    places = Places(
        state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache,
        hint="Give the URL of its root instead of the name, with --key, or add it to the configuration.",
    )  # fmt: skip
    raise typer.Exit(check_place(places, fqrn, hash_objects=hash_objects, as_json=as_json))


app.command(
    "replicate",
    epilog="Example: mica repo replicate http://host/cvmfs/images.example.org /srv/replica --key images.pub",
)(replicate.replicate)
app.command("resign", epilog="Example: mica repo resign images.example.org --days 30")(resign.resign)


def _algorithm(name: str) -> "Algorithm":
    from mica.digest import Algorithm

    known = {algorithm.config_name: algorithm for algorithm in Algorithm}
    if name not in known:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint="--hash")
    return known[name]


def _compression(name: str) -> "Compression":
    from mica.repo.objects import Compression

    known = {compression.config_name: compression for compression in Compression}
    if name not in known:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint="--compression")
    return known[name]


def _chunk_rule(text: str) -> "ChunkRule":
    from mica.repo.cutting import ChunkRule

    try:
        smallest, average, largest, *program = (int(part) << 10 for part in text.split(","))
        return ChunkRule(smallest, average, largest, *program)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(
            f"{text!r} is not three ascending numbers of KiB, such as 4096,8192,16384, or these and a power of two "
            "of at least 4 for programs",
            param_hint="--chunk-sizes",
        ) from error
