"""What an S3 server's refusal means, as a sentence for people. Pure.

obstore raises a few classes; status, code and kind of failure are in the text of its errors (`parse_failure`). Nothing
else of that text is shown: it has URLs and what a server sent.
"""

import re
from typing import Final, NamedTuple

from mica.errors import MicaError, NotFoundError, TemporaryError, UserError

_STATUS = re.compile(r"status code: (\d{3})|\bstatus: (\d{3}),")
_CODE = re.compile(r"<Code>([A-Za-z0-9_.-]{1,64})</Code>")
_KIND = re.compile(r"kind: (Connect|Timeout|Request|Interrupted|Decode|Unknown)\b")
_RETRIES_EXHAUSTED: Final = "Try again later."

_READ_ONLY: Final = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "MethodNotAllowed"}
_FULL: Final = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageFull", "EntityTooLarge"}
_EXPIRED: Final = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "RequestExpired"}
_WRONG_REGION: Final = {
    "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "TemporaryRedirect",
    "InvalidRegion",
}  # fmt: skip
_WRONG_PRECONDITION: Final = {"PreconditionFailed", "ConditionalRequestConflict"}


class Failure(NamedTuple):
    """`status` is 0 if there was no answer. `code` is S3's, and may be empty. `kind` is how a connection failed."""

    status: int
    code: str
    kind: str

    @property
    def is_unmet_condition(self) -> bool:
        """Of a request that was to change something only if it is as expected."""
        return self.status == 412 or self.code in _WRONG_PRECONDITION

    @property
    def is_missing_key(self) -> bool:
        """A HEAD has no code: then it may also be the bucket."""
        return self.status == 404 and self.code in {"", "NoSuchKey", "NotFound", "NoSuchVersion"}

    @property
    def is_unanswered(self) -> bool:
        """It may have been carried out all the same."""
        return not self.status or self.status >= 500 or self.status == 408


def parse_failure(text: str) -> Failure:
    status, code, kind = _STATUS.search(text), _CODE.search(text), _KIND.search(text)
    number = int(status[1] or status[2]) if status else 0
    if not number and "redirect without LOCATION" in text:
        number = 301
    return Failure(number, code[1] if code else "", kind[1] if kind else "")


def explain(failure: Failure, doing: str, *, where: str, server: str, origin: str, region: str) -> MicaError:
    """`doing` follows "Cannot"; `where` is the storage, `origin` where its credentials are from."""
    start = f"Cannot {doing} in {where}: "
    status, code, _ = failure
    if code == "NoSuchBucket":
        return UserError(f"{start}there is no bucket of that name at {server}.", hint="Make it, or correct the name.")
    if code == "InvalidAccessKeyId":
        return UserError(f"{start}{server} does not know the access key.", hint=f"It is from {origin}.")
    if code == "SignatureDoesNotMatch":
        return UserError(
            f"{start}{server} refuses the secret key.", hint=f"It is from {origin} and does not fit the access key."
        )
    if code in _EXPIRED:
        return UserError(f"{start}the credentials have expired.", hint=f"They are from {origin}: get new ones.")
    if code == "RequestTimeTooSkewed":
        return UserError(f"{start}the clock of this machine is not that of {server}.", hint="Set the clock.")
    if code in _WRONG_REGION or status in {301, 307}:
        return UserError(f"{start}the bucket is not in region {region}.", hint="Name its region with --s3-region.")
    if code in _FULL or status == 507:
        return UserError(
            f"{start}No space left at {server}{_in_brackets(code)}.", hint="Free some space; nothing was published."
        )
    if failure.is_missing_key:
        return NotFoundError(f"{start}it is not there.")
    if code in _READ_ONLY or status in {401, 403, 405}:
        return UserError(
            f"{start}Read-only or closed for these credentials{_in_brackets(code)}.",
            hint=f"They are from {origin}; they need to list, read, write and delete there.",
        )
    if not status:
        reason = {"Connect": "cannot be reached", "Timeout": "does not answer in time"}.get(failure.kind, "hangs up")
        return TemporaryError(f"{start}{server} {reason}.", hint="Is its address right, and is it up?")
    if code in {"SlowDown", "ServiceUnavailable"} or status in {429, 503}:
        return TemporaryError(f"{start}{server} is overloaded{_in_brackets(code)}.", hint=_RETRIES_EXHAUSTED)
    if status >= 500 or status == 408:
        return TemporaryError(f"{start}{server} answers {status}{_in_brackets(code)}.", hint=_RETRIES_EXHAUSTED)
    return UserError(f"{start}{server} refuses it, {status}{_in_brackets(code)}.")


def _in_brackets(code: str) -> str:
    return f" ({code})" if code else ""
