"""A signing request: whitelists that are to be signed with a master key on another machine (docs/format/signing.md).

    request  = parse_request(data, what)             what the release manager wrote
    answer   = format_answer(sign_request(request, key))
    signed   = parse_answer(data, what).whitelists   whole whitelist files, whose signatures nobody has checked yet

Both files are JSON texts that people can read. They contain no secret. Pure; any thread.
"""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mica.digest import Algorithm
from mica.errors import IntegrityError, UserError, explain_parse_error
from mica.repo.whitelist import Whitelist, format_whitelist, parse_whitelist, parse_whitelist_text, sign_whitelist

SIZE_LIMIT = 256 << 10
_REQUEST = "mica signing request 1"
_ANSWER = "mica signed whitelists 1"
_MOST_WHITELISTS = 2


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """`whitelists`: those of one change, in the order in which they are published. `master_keys`: names of the public
    keys that clients accept, as `name_of_key` gives them; one of them has to sign."""

    fqrn: str
    whitelists: tuple[Whitelist, ...]
    master_keys: tuple[str, ...]
    algorithm: Algorithm = Algorithm.SHA1


@dataclass(frozen=True, slots=True)
class SignedAnswer:
    """`whitelists` are whole files."""

    fqrn: str
    whitelists: tuple[bytes, ...]


def name_of_key(key: rsa.RSAPublicKey) -> str:
    """SHA-256 of the public key's DER form, in hexadecimal: what tells master keys apart."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def format_request(request: SigningRequest) -> bytes:
    document = {
        "format": _REQUEST,
        "purpose": f"Whitelists of the repository {request.fqrn}, to be signed with its master key: "
        "mica key sign FILE --master-key KEY",
        "repository": request.fqrn,
        "hash": request.algorithm.config_name,
        "master_keys": list(request.master_keys),
        "whitelists": [format_whitelist(whitelist).decode("ascii").splitlines() for whitelist in request.whitelists],
    }
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def parse_request(data: bytes, what: str) -> SigningRequest:
    """Raises UserError naming `what`, also for a text that would not be signed exactly as it is shown."""
    document = _document(data, what, _REQUEST, "a signing request")
    algorithms = {algorithm.config_name: algorithm for algorithm in Algorithm}
    try:
        fqrn = str(document["repository"])
        texts = ["".join(f"{line}\n" for line in lines) for lines in document["whitelists"]]
        whitelists = tuple(parse_whitelist_text(text) for text in texts)
        request = SigningRequest(
            fqrn, whitelists, tuple(map(str, document["master_keys"])), algorithms[document["hash"]]
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{what} is a damaged signing request: {explain_parse_error(error)}.") from error
    if not 1 <= len(whitelists) <= _MOST_WHITELISTS or not request.master_keys:
        raise UserError(f"{what} is a damaged signing request: it has {len(whitelists)} whitelists.")
    for whitelist, text in zip(whitelists, texts, strict=True):
        if whitelist.fqrn != fqrn:
            raise UserError(f"{what} is for {fqrn} and has a whitelist of {whitelist.fqrn}.")
        if format_whitelist(whitelist) != text.encode("ascii", "replace"):
            raise UserError(f"{what} has a line that does not belong into a whitelist.")
    return request


def sign_request(request: SigningRequest, key: rsa.RSAPrivateKey, what: str) -> SignedAnswer:
    """Raises UserError naming the key as `what` if no client would accept its signature."""
    if name_of_key(key.public_key()) not in request.master_keys:
        raise UserError(
            f"{what} is not a master key of {request.fqrn}: no client would accept its signature.",
            hint="Its public half has to be the key that clients have (.pub).",
        )
    return SignedAnswer(
        request.fqrn, tuple(sign_whitelist(whitelist, key, request.algorithm) for whitelist in request.whitelists)
    )


def format_answer(answer: SignedAnswer) -> bytes:
    document = {
        "format": _ANSWER,
        "purpose": f"Signed whitelists of the repository {answer.fqrn}: mica repo resign {answer.fqrn} --accept FILE",
        "repository": answer.fqrn,
        "whitelists": [base64.b64encode(whitelist).decode("ascii") for whitelist in answer.whitelists],
    }
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def parse_answer(data: bytes, what: str) -> SignedAnswer:
    """Raises UserError naming `what`, IntegrityError for whitelists that were changed. No signature is checked."""
    document = _document(data, what, _ANSWER, "an answer to a signing request")
    try:
        whitelists = tuple(base64.b64decode(text, validate=True) for text in document["whitelists"])
        answer = SignedAnswer(str(document["repository"]), whitelists)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise UserError(f"{what} is damaged: {explain_parse_error(error)}.") from error
    if not 1 <= len(whitelists) <= _MOST_WHITELISTS:
        raise UserError(f"{what} is damaged: it has {len(whitelists)} whitelists.")
    for whitelist in whitelists:
        if parse_whitelist(whitelist, f"A whitelist in {what}")[0].fqrn != answer.fqrn:
            raise IntegrityError(f"{what} is for {answer.fqrn} and has a whitelist of another repository.")
    return answer


def _document(data: bytes, what: str, form: str, kind: str) -> dict[str, Any]:
    if len(data) > SIZE_LIMIT:
        raise UserError(f"{what} has {len(data)} bytes, more than {kind} can have.")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not {kind}: {explain_parse_error(error)}.") from error
    if not isinstance(document, dict) or document.get("format") != form:
        raise UserError(f"{what} is not {kind}.", hint=f'Such a file says: "format": "{form}".')
    return document
