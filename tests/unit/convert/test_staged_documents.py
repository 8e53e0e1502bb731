"""The document of a staged layer: what is written is read, and nothing else."""

import json

import pytest
from tests.support.stagedlayers import staged_layer

from mica.convert.staging import format_staged, parse_staged

DIGEST = f"sha256:{7:064x}"


def test_what_is_written_is_read() -> None:
    layer = staged_layer(DIGEST)
    assert parse_staged(format_staged(layer), DIGEST) == layer


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("beside", 0, "name"), f"{8:064x}.json"),
        (("beside", 0, "name"), f"{7:064x}./../x"),
        (("beside", 0, "digest"), "x"),
        (("beside", 0, "chunks"), [[0, 1]]),
        (("catalog", "root"), {}),
        (("catalog", "own"), {"regular": 1}),
        (("catalog", "bytes"), "many"),
        (("changes",), []),
        (("version",), 2),
        (("digest",), f"sha256:{8:064x}"),
    ],
)
def test_other_documents_are_none(place: tuple[object, ...], value: object) -> None:
    document = json.loads(format_staged(staged_layer(DIGEST)))
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert parse_staged(json.dumps(document), DIGEST) is None
