"""`mica key …`: work with master keys, on a machine that needs no repository and no network."""

import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.commands import Commands
from mica.cli.options import JsonOption
from mica.cli.printing import print_facts, print_json
from mica.errors import UsageError, UserError

if TYPE_CHECKING:
    from mica.repo.signingrequest import SigningRequest

app = typer.Typer(
    cls=Commands,
    help="Make master keys and sign with them, also where there is no repository and no network.",
    no_args_is_help=True,
)


@app.command(epilog="Example: mica key new images.masterkey")
def new(
    file: Annotated[Path, typer.Argument(help="The new master key, NAME.masterkey; the public one is NAME.pub.")],
    as_json: JsonOption = False,
) -> None:
    """Make a master key, such as the next one of a repository."""
    from mica.publish.keyfiles import make_master_key
    from mica.repo.signingrequest import name_of_key

    public = file.with_name(f"{file.name.removesuffix('.masterkey')}.pub")
    key = make_master_key(file, public)
    facts: dict[str, object] = {
        "master_key": str(file), "public_key": str(public), "name": name_of_key(key.public_key()),
    }  # fmt: skip
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command(epilog="Example: mica key sign images.request --master-key images.masterkey")
def sign(
    request: Annotated[Path, typer.Argument(help="File that `mica repo resign --request` has written.")],
    master_key: Annotated[Path, typer.Option("--master-key", help="File with the master key.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The answer; default: the request's name with .signed.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Sign without asking.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a signing request asks for, and sign it with a master key. No repository is needed here."""
    from mica.files import mapped_os_errors, replace_file
    from mica.publish.keyfiles import read_private_key
    from mica.repo.signingrequest import format_answer, parse_request, sign_request

    output = output or Path(f"{request}.signed")
    with mapped_os_errors(f"read the request {request}"):
        document = parse_request(request.read_bytes(), f"The request {request}")
    key = read_private_key(master_key, f"The master key {master_key}")
    last = document.whitelists[-1]
    now = datetime.datetime.now(datetime.UTC)
    if last.is_expired(now):
        raise UserError(
            f"The request {request} is for a whitelist that expired at {last.expires:%Y-%m-%d %H:%M} UTC.",
            hint=f"Write a new one: mica repo resign {document.fqrn} --request FILE",
        )
    answer = sign_request(document, key, f"The master key {master_key}")
    facts = _facts_of(document, now)
    if not as_json:
        print_facts({name: _shown(value) for name, value in facts.items()})
    if not yes:
        _ask()
    with mapped_os_errors(f"write {output}"):
        replace_file(output, format_answer(answer))
    if as_json:
        print_json({**facts, "answer": str(output)})
    else:
        print_facts({"signed": output})


def _facts_of(request: "SigningRequest", now: datetime.datetime) -> dict[str, object]:
    first, last = request.whitelists[0], request.whitelists[-1]
    hours = 0 if last.created is None else max((now - last.created).total_seconds(), 0) / 3600
    return {
        "repository": request.fqrn,
        "requested": f"{last.created:%Y-%m-%dT%H:%M:%SZ}",
        "hours_ago": round(hours, 1),
        "valid_until": f"{last.expires:%Y-%m-%dT%H:%M:%SZ}",
        "certificates": list(last.fingerprints),
        "certificates_that_go": [text for text in first.fingerprints if text not in last.fingerprints],
        "revoked_below": last.oldest_revision,
    }


def _shown(value: object) -> object:
    return (", ".join(value) or "none") if isinstance(value, list) else value


def _ask() -> None:
    if not sys.stdin.isatty():
        raise UsageError("Nobody can be asked here: give --yes if what is shown is to be signed.")
    sys.stderr.write("Sign this? [y/N] ")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UserError("Nothing was signed.")
