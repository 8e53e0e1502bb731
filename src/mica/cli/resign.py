"""`mica repo resign`: renew the signatures of a repository, also with a master key that is on another machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import FqrnArgument, JsonOption, StateOption
from mica.cli.printing import print_facts, print_json
from mica.errors import UsageError
from mica.files import mapped_os_errors

if TYPE_CHECKING:
    from mica.publish.manager import ReleaseManager
    from mica.repo.whitelist import Whitelist


def resign(
    fqrn: FqrnArgument,
    state: StateOption,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the new whitelist is valid.")] = 30,
    revoke_below: Annotated[
        int,
        typer.Option(min=0, help="Revoke all revisions below this one for mica's clients; older revocations stay."),
    ] = 0,
    master_key: Annotated[
        Path | None, typer.Option("--master-key", help="File with the master key; default: that of the repository.")
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option("--request", help="Write what has to be signed to this file, for `mica key sign` elsewhere."),
    ] = None,
    accepted: Annotated[
        Path | None, typer.Option("--accept", help="Check and publish what `mica key sign` has written to this file.")
    ] = None,
    new_key: Annotated[
        bool,
        typer.Option("--new-key", help="Also make a new key and certificate, which sign from this whitelist on."),
    ] = False,
    next_key: Annotated[
        Path | None,
        typer.Option(
            "--next-key",
            help="File with the public half of the next master key (.pub): from now on it may sign too, once clients "
            "have it besides the present one.",
        ),
    ] = None,
    within_days: Annotated[
        int | None,
        typer.Option("--within", min=0, help="Do nothing unless the whitelist expires within so many days."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Renew the whitelist and sign the newest revision again.

    The master key may be on another machine: write a request here, sign it there with `mica key sign`, and accept the
    answer here. Until then publishing goes on as before.
    """
    from mica.publish import resigning
    from mica.publish.manager import ReleaseManager
    from mica.repo.signingrequest import format_request, parse_answer
    from mica.repo.whitelist import VALIDITY_DAYS

    others = (request, master_key, next_key, within_days, revoke_below, new_key, days)
    if accepted is not None and others != (None, None, None, None, 0, False, VALIDITY_DAYS):
        raise UsageError("--accept goes with no other option: the signed whitelist says it all.")
    if request is not None and master_key is not None:
        raise UsageError("--request is for a master key that is not here: it does not go with --master-key.")
    with ReleaseManager.open(state, fqrn) as manager:
        if within_days is not None and resigning.days_left(manager) > within_days:
            _print({"repository": fqrn, "renewed": False, **_whitelist_facts(manager)}, as_json=as_json)
            return
        if new_key or next_key is not None:
            with manager.locked():  # of two calls at once, both would make a key
                if next_key is not None:
                    manager.keys.announce_master_key(next_key)
                if new_key:
                    manager.keys.make_next_signer()
        if request is not None:
            document = resigning.make_request(manager, days=days, revoke_below=revoke_below)
            _write_new(request, format_request(document))
            _print({"repository": fqrn, "request": str(request), **_facts_of(document.whitelists[-1])}, as_json=as_json)
            return
        if accepted is not None:
            what = f"The answer {accepted}"
            with mapped_os_errors(f"read the answer {accepted}"):
                answer = parse_answer(accepted.read_bytes(), what)
            manifest = resigning.accept(manager, answer, what)
        else:
            master = manager.keys.master_key(master_key)
            manifest = resigning.resign(manager, days=days, revoke_below=revoke_below, master=master)
        facts = {"repository": fqrn, "revision": manifest.revision, **_whitelist_facts(manager)}
    _print(facts, as_json=as_json)


def _whitelist_facts(manager: "ReleaseManager") -> dict[str, object]:
    from mica.publish.resigning import published_whitelist

    return _facts_of(published_whitelist(manager))


def _facts_of(whitelist: "Whitelist") -> dict[str, object]:
    return {
        "valid_until": f"{whitelist.expires:%Y-%m-%dT%H:%M:%SZ}",
        "certificates": list(whitelist.fingerprints),
        "revoked_below": whitelist.oldest_revision,
    }


def _print(facts: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    certificates = facts.get("certificates")
    shown = {**facts, "certificates": ", ".join(certificates)} if isinstance(certificates, list) else facts
    print_facts({name: value for name, value in shown.items() if (name, value) != ("revoked_below", 0)})


def _write_new(path: Path, data: bytes) -> None:
    """A request that is on its way is not replaced unnoticed."""
    with mapped_os_errors(f"write the request {path}"), open(path, "xb") as file:
        file.write(data)
