"""Opens the store that a repository's setting `storage` names: here alone its text is understood.

    /srv/cvmfs/images.example.org           a directory
    s3://bucket/images.example.org          a bucket of S3, and a prefix of its keys

What S3 is needed for is imported only then. Any thread.
"""

import os
from dataclasses import replace
from pathlib import Path

from mica.errors import UserError
from mica.store.base import REFRESH_AFTER_S, ObjectStore
from mica.store.local import LocalStore
from mica.store.s3access import NO_OPTIONS, SCHEME, S3Options, bucket_url, parse_place


def parse_storage(text: str) -> str:
    """What a user gave, as it is kept in settings: a directory's path becomes absolute. Raises UserError."""
    if text.startswith(SCHEME):
        return parse_place(text).text
    if "://" in text:
        raise UserError(f"{text!r} is no storage.", hint="It has to be a directory, or s3://BUCKET/PREFIX.")
    return os.path.abspath(text)


def open_store(
    storage: str, options: S3Options = NO_OPTIONS, *, refresh_after_s: float = REFRESH_AFTER_S
) -> ObjectStore:
    """`storage` as `parse_storage` returned it. The place itself is not looked at yet. Raises UserError for options
    that cannot be used, such as missing credentials."""
    if not storage.startswith(SCHEME):
        return LocalStore(Path(parse_storage(storage)), refresh_after_s=refresh_after_s)
    from mica.store.s3 import S3Store
    from mica.store.s3client import S3Client

    client = S3Client(parse_place(storage), options)
    return S3Store(client, has_conditions=options.has_conditions, refresh_after_s=refresh_after_s)


def probe_storage(storage: str, options: S3Options = NO_OPTIONS) -> S3Options:
    """The options with what is found out about the place when a repository is set up in it. Raises MicaError if it
    cannot be written."""
    if not storage.startswith(SCHEME):
        return options
    from mica.store.s3client import S3Client
    from mica.store.s3probe import honours_conditions

    return replace(options, has_conditions=honours_conditions(S3Client(parse_place(storage), options)))


def public_url(storage: str, options: S3Options = NO_OPTIONS) -> str | None:
    """Where a web server fetches the files of a storage on S3 from; None for a directory."""
    return bucket_url(parse_place(storage), options) if storage.startswith(SCHEME) else None


def local_directory(storage: str) -> Path | None:
    """The directory with the files of a storage on this machine; None for any other storage."""
    return None if storage.startswith(SCHEME) else Path(storage)
