"""`mica repo …`: create, fill, serve, look into and check repositories."""

import sys
from pathlib import Path
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
    parse_address,
    repository_path,
)
from mica.cli.output import print_facts, print_json, print_table, progress, text_of
from mica.errors import UserError

if TYPE_CHECKING:
    from mica.digest import Algorithm
    from mica.repo.chunking import ChunkRule
    from mica.repo.objects import Compression

_YEAR_S = 366 * 86400
app = typer.Typer(help="Create, fill, serve, look into and check repositories.", no_args_is_help=True)


@app.command(epilog="Example: mica repo create images.example.org --storage /srv/cvmfs/images.example.org")
def create(
    fqrn: FqrnArgument,
    storage: Annotated[Path, typer.Option(help="Directory that a web server shall publish; made if missing.")],
    state: StateOption,
    keys: Annotated[
        Path | None, typer.Option(help="Directory of the keys; existing ones are used. Default: below --state.")
    ] = None,
    hash_name: Annotated[str, typer.Option("--hash", help="sha1, rmd160 or shake128.")] = "sha1",
    compression: Annotated[str, typer.Option(help="zlib or none.")] = "zlib",
    chunk_sizes: Annotated[
        str,
        typer.Option(
            help="Smallest, average and largest piece of large files, in KiB, and after that, if not the same, that of "
            "programs and libraries; the stock server has 4096,8192,16384."
        ),
    ] = "256,512,1024,64",
    ttl_s: Annotated[
        int, typer.Option("--ttl", min=1, max=_YEAR_S, help="Seconds until clients look for a newer revision.")
    ] = 240,
    auto_tag: Annotated[bool, typer.Option("--auto-tag", help="Name every revision by its time.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make keys, whitelist and the first, empty revision of a repository."""
    from mica.publish.manager import create_repository
    from mica.publish.objectwriter import ObjectRules
    from mica.publish.settings import RepositorySettings, state_directory

    rules = ObjectRules(_algorithm(hash_name), _compression(compression), _chunk_rule(chunk_sizes))
    where = keys or state_directory(state, fqrn) / "keys"
    settings = RepositorySettings(fqrn, storage.absolute(), where.absolute(), rules, ttl_s, auto_tag)
    manifest = create_repository(state, settings, {"description": fqrn})
    facts = {
        "repository": fqrn, "storage": str(settings.storage), "public_key": str(settings.key_path("pub")),
        "master_key": str(settings.key_path("masterkey")), "revision": manifest.revision,
    }  # fmt: skip
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command(epilog="Example: mica repo ingest images.example.org data.tar /data --catalog")
def ingest(
    fqrn: FqrnArgument,
    tar: Annotated[str, typer.Argument(help="An uncompressed tar, or - for standard input.")],
    path: Annotated[str, typer.Argument(help="Directory in the repository; made if missing.")],
    state: StateOption,
    catalog: Annotated[bool, typer.Option("--catalog", "-c", help="Give PATH a nested catalog of its own.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish what a tar holds. Directories keep what they have; everything else is replaced."""
    from mica.files import mapped_os_errors
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
                stream, transaction.objects, mode=Mode.PLAIN, limits=DEFAULT_LIMITS, require_end=True, progress=done
            )
        merge_archive(archive, transaction.catalogs, base, nested=catalog, marker=transaction.marker())
    assert transaction.published is not None
    facts: dict[str, object] = {
        "repository": fqrn, "path": text_of(base) or "/", "revision": transaction.published.revision,
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
    """Serve repositories over HTTP, good enough for a laboratory. Prints the URL and runs until it is stopped."""
    import signal

    from mica.publish.settings import read_settings
    from mica.store.httpserver import RepositoryServer

    storages = {name: read_settings(state, name).storage for name in fqrn}
    host, port = parse_address(listen)
    try:
        server = RepositoryServer((host, port), storages)
    except OSError as error:
        raise UserError(f"Cannot listen on {listen}: {error.strerror}.") from error

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with server:
        for name in fqrn:
            print(f"{server.url}/cvmfs/{name}", flush=True)  # noqa: T201 - the one line others wait for
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


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
            print(text_of(name))  # noqa: T201 - a listing


@app.command(epilog="Example: mica repo cat images.example.org /etc/os-release")
def cat(
    fqrn: FqrnArgument,
    path: Annotated[str, typer.Argument(help="A file in the repository.")],
    state: StateOption,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
) -> None:
    """Write the content of a file to standard output."""
    from mica.cli.browse import Browser
    from mica.cli.places import Places

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
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
    """Tell everything the catalog says of a path: attributes, object, chunks, extended attributes."""
    from mica.cli.browse import Browser
    from mica.cli.places import Places

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    with Browser.open(places, fqrn) as browser:
        facts = browser.stat(repository_path(path))
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command(epilog="Example: mica repo history images.example.org")
def history(
    fqrn: FqrnArgument,
    state: StateOption,
    urls: UrlOption = None,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    quota: QuotaOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the named revisions, newest first."""
    import time

    from mica.cli.browse import Browser
    from mica.cli.places import Places

    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache, quota=quota)
    with Browser.open(places, fqrn) as browser:
        tags = browser.tags()
    if as_json:
        print_json([{**tag._asdict(), "root_catalog": tag.root_catalog.text} for tag in tags])
        return
    rows = [
        (tag.revision, tag.name, time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(tag.timestamp)), tag.root_catalog,
         tag.description)
        for tag in tags
    ]  # fmt: skip
    print_table(("revision", "tag", "published", "root catalog", "description"), rows)


@app.command(epilog="Example: mica repo check images.example.org --hash")
def check(
    where: Annotated[str, typer.Argument(metavar="FQRN|URL", help="A repository, by name or by the URL of its root.")],
    state: StateOption,
    hash_objects: Annotated[
        bool, typer.Option("--hash", help="Also read every object and compare its digest.")
    ] = False,
    keys: KeyOption = None,
    proxies: ProxyOption = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a published repository against every rule of the format. Exit code 3 if anything is wrong."""
    from mica.cli.checking import check_place
    from mica.cli.places import Places

    urls = [where] if "://" in where else None
    fqrn = where.rstrip("/").rpartition("/")[2]
    places = Places(state, config=config, urls=urls, keys=keys, proxies=proxies, cache=cache)
    raise typer.Exit(check_place(places, fqrn, hash_objects=hash_objects, as_json=as_json))


@app.command(epilog="Example: mica repo resign images.example.org --days 30")
def resign(
    fqrn: FqrnArgument,
    state: StateOption,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the new whitelist is valid.")] = 30,
) -> None:
    """Renew the whitelist and sign the newest revision again."""
    from mica.publish.manager import ReleaseManager

    with ReleaseManager.open(state, fqrn) as manager:
        manifest = manager.resign(days=days)
    print_facts({"repository": fqrn, "revision": manifest.revision, "valid_days": days})


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
    from mica.repo.chunking import ChunkRule

    try:
        smallest, average, largest, *program = (int(part) << 10 for part in text.split(","))
        return ChunkRule(smallest, average, largest, *program)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(
            "three ascending numbers of KiB, such as 4096,8192,16384, and perhaps a power of two of at least 4"
        ) from error
