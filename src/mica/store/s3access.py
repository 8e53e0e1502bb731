"""Where a bucket is and with which keys: what settings say, and the variables and files that all S3 programs share.

Credentials come from the first of: the file that the settings name, the variables AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, the user's own credentials file (AWS_SHARED_CREDENTIALS_FILE, else ~/.aws/credentials). The
machine's own identity in a cloud is never asked for. The variables are read here and not in `cli/`, because obstore
reads the others of their kind (proxies, certificates) by itself. Any thread.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from mica.errors import UserError
from mica.files import mapped_os_errors

SCHEME: Final = "s3://"
DEFAULT_REGION: Final = "us-east-1"
ADDRESSING: Final = ("path", "virtual")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")


@dataclass(frozen=True, slots=True)
class S3Options:
    """`endpoint`: URL of the server, empty for AWS or the variable AWS_ENDPOINT_URL. `addressing`: whether the bucket
    is part of the path or of the host's name. `credentials`: a file as ~/.aws/credentials. `has_conditions`: whether
    the server replaces an object only if it is the one that was read (found out when the storage is set up); else
    writers exclude each other by leases."""

    endpoint: str = ""
    region: str = ""
    addressing: str = "path"
    credentials: Path | None = None
    has_conditions: bool = True


NO_OPTIONS: Final = S3Options()


class S3Place(NamedTuple):
    """`prefix` has no slash at its ends, and is empty for a whole bucket."""

    bucket: str
    prefix: str

    @property
    def text(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


class Credentials(NamedTuple):
    """`origin` says where they are from, without telling them."""

    key_id: str
    secret: str
    token: str
    origin: str

    def __repr__(self) -> str:
        return f"Credentials({self.origin})"


def parse_place(text: str) -> S3Place:
    """Raises UserError for what is no s3://BUCKET[/PREFIX]."""
    bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
    prefix = prefix.rstrip("/")
    dots = {".", ".."} & set(prefix.split("/"))
    if not text.startswith(SCHEME) or not _BUCKET.fullmatch(bucket) or dots:
        raise UserError(f"{text!r} is no storage on S3.", hint="Such as s3://bucket/images.example.org.")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise UserError(
            f"{text!r} is no storage on S3: a prefix has letters, digits, '._-' and single slashes.",
            hint="Such as s3://bucket/images.example.org.",
        )
    return S3Place(bucket, prefix)


def endpoint_url(options: S3Options, environment: Mapping[str, str] = os.environ) -> str:
    """Empty for AWS itself. Raises UserError for what is no URL."""
    url = options.endpoint or environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
    if url and not re.fullmatch(r"https?://[^/?#@\s]+/?", url):
        raise UserError(f"{url!r} is no URL of an S3 server.", hint="Such as https://s3.example.org:9000, no path.")
    return url.rstrip("/")


def region_name(options: S3Options, environment: Mapping[str, str] = os.environ) -> str:
    return (
        options.region
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
        or DEFAULT_REGION
    )  # fmt: skip


def bucket_url(place: S3Place, options: S3Options, environment: Mapping[str, str] = os.environ) -> str:
    """Where anybody finds the files of a storage, if the bucket lets them."""
    endpoint = endpoint_url(options, environment) or f"https://s3.{region_name(options, environment)}.amazonaws.com"
    if options.addressing == "virtual":
        endpoint = endpoint.replace("://", f"://{place.bucket}.", 1)
        return f"{endpoint}/{place.prefix}".rstrip("/")
    return f"{endpoint}/{place.bucket}/{place.prefix}".rstrip("/")


def find_credentials(place: S3Place, options: S3Options, environment: Mapping[str, str] = os.environ) -> Credentials:
    """Raises UserError if there are none, or half of them."""
    if options.credentials is not None:
        return _from_file(options.credentials, environment)
    key_id, secret = environment.get("AWS_ACCESS_KEY_ID", ""), environment.get("AWS_SECRET_ACCESS_KEY", "")
    if key_id and secret:
        return Credentials(key_id, secret, environment.get("AWS_SESSION_TOKEN", ""), "the environment")
    if key_id or secret:
        raise UserError("Of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set.", hint="Set both, or none.")
    home = environment.get("HOME", "")
    shared = environment.get("AWS_SHARED_CREDENTIALS_FILE") or (f"{home}/.aws/credentials" if home else "")
    if shared and os.path.exists(shared):
        return _from_file(Path(shared), environment)
    raise UserError(
        f"There are no credentials for {place.text}.",
        hint="Name a file with --s3-credentials, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )


def _from_file(path: Path, environment: Mapping[str, str]) -> Credentials:
    profile = environment.get("AWS_PROFILE") or "default"
    import configparser

    parser = configparser.RawConfigParser()
    with mapped_os_errors(f"read the credentials file {path}"):
        try:
            parser.read_string(path.read_text("utf-8"))
        except (configparser.Error, UnicodeDecodeError):
            # Their messages quote lines of the file.
            raise UserError(f"{path} is no credentials file.", hint="It has lines as ~/.aws/credentials.") from None
    values = parser[profile] if parser.has_section(profile) else {}
    key_id, secret = values.get("aws_access_key_id", ""), values.get("aws_secret_access_key", "")
    if not key_id or not secret:
        raise UserError(
            f"{path} has no aws_access_key_id and aws_secret_access_key in a section [{profile}].",
            hint="AWS_PROFILE names another section.",
        )
    return Credentials(key_id, secret, values.get("aws_session_token", ""), f"the file {path}")
