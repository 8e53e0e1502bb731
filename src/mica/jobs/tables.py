"""The table of layers that were asked for. It is the truth: what is asked, made, finished, failed, published.

    wanted ──begin──▶ making ──finish──▶ staged ──settle──▶ published
       ▲                │ │
       └──put back──────┘ └──fail──▶ failed        whoever asks again for a failed layer makes it wanted

A row is one layer of one repository, whoever asks for it and how often (docs/design/workers.md). The queue's own
tables, beside it, say only whose turn it is.
"""

from enum import StrEnum

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, String, Table, Text

METADATA = MetaData()

LAYERS = Table(
    "mica_layers",
    METADATA,
    Column("repository", String(60), primary_key=True),
    Column("digest", String(140), primary_key=True),  # of the compressed layer, sha256:… or sha512:…
    Column("state", String(16), nullable=False, index=True),
    Column("since_s", Double, nullable=False),  # seconds since 1970, of the machine that wrote the row
    Column("worker", String(120), nullable=False, default=""),  # who makes it, or made it
    Column("tries", Integer, nullable=False, default=0),  # how often it was begun since it was asked for
    Column("error", Text, nullable=False, default=""),  # why it failed, the last time: JSON (errors.format_error)
    Column("source", Text, nullable=False),  # where it is read from: JSON (wishes.format_wish)
    Column("job_id", BigInteger),  # in the queue's tables; none while it is put there
    Column("revision", BigInteger),  # the one that has it first, of a published layer
    Column("document", Text),  # of a staged layer: JSON (staging.format_staged)
)


class RowState(StrEnum):
    """The state of a layer in the table."""

    WANTED = "wanted"
    MAKING = "making"
    STAGED = "staged"
    PUBLISHED = "published"
    FAILED = "failed"
