"""Signatures (version 4) of S3 requests without a query: for what tests ask of a server that mica never does."""

import hashlib
import hmac
import time
from typing import Final, NamedTuple

REGION: Final = "us-east-1"


class Credentials(NamedTuple):
    key_id: str
    secret: str


def signed(credentials: Credentials, method: str, path: str, host: str, payload_sha256: str) -> dict[str, str]:
    """The headers to add. Others are not part of the signature."""
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {"host": host, "x-amz-content-sha256": payload_sha256, "x-amz-date": now}
    names = ";".join(headers)
    lines = [method, path, "", *(f"{name}:{value}" for name, value in headers.items()), "", names, payload_sha256]
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    key = f"AWS4{credentials.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}".encode(), "sha256").hex()
    value = f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope},SignedHeaders={names},Signature={signature}"
    return {**headers, "authorization": value}
