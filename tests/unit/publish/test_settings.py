"""Settings of a repository come back as they were written, and old files mean what they meant."""

from dataclasses import replace
from pathlib import Path

import pytest

from mica.digest import Algorithm
from mica.errors import UserError
from mica.publish.rules import ObjectRules
from mica.publish.settings import RepositorySettings, format_settings, parse_settings
from mica.repo.cutting import FINE_RULE, STANDARD_RULE, ChunkRule
from mica.repo.objects import Compression
from mica.store.s3access import S3Options

S3_OPTIONS = S3Options("http://s3:9000", "r", "virtual", Path("/c"), has_conditions=False)
PLAIN = RepositorySettings("images.example.org", "/srv/st\"or'e", Path("/keys"))


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        replace(PLAIN, ttl_s=61, auto_tag=True, garbage_collectable=False),
        replace(PLAIN, objects=ObjectRules(Algorithm.SHAKE128, Compression.NONE, STANDARD_RULE)),
        replace(PLAIN, objects=ObjectRules(chunking=ChunkRule(5000, 6000, 7000, program=8192))),
        replace(PLAIN, storage="s3://bucket/images.example.org"),
        replace(
            PLAIN,
            storage="s3://bucket",
            s3=S3Options("http://s3:9000", "r", "virtual", Path("/c"), has_conditions=False),
        ),
    ],
)
def test_what_is_written_is_read(settings: RepositorySettings) -> None:
    assert parse_settings(format_settings(settings).encode(), "it") == settings


def test_files_from_before_programs_had_pieces_of_their_own() -> None:
    text = format_settings(PLAIN)
    older = "".join(line for line in text.splitlines(keepends=True) if "program" not in line)
    assert parse_settings(older.encode(), "it").objects.chunking == replace(FINE_RULE, program=0)
    oldest = "".join(line for line in text.splitlines(keepends=True) if "chunk" not in line)
    assert parse_settings(oldest.encode(), "it").objects.chunking == FINE_RULE


@pytest.mark.parametrize("data", [b"\xff", b"fqrn", b'fqrn = "x"', b'fqrn = "x"\nstorage = "s"\nkeys = 1'])
def test_what_are_no_settings_is_told(data: bytes) -> None:
    with pytest.raises(UserError, match="it is not a valid repository setting"):
        parse_settings(data, "it")
