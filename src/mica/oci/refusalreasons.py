"""A server's own reason for a refusal: from the body of its answer to a part of a sentence. Pure.

Registries say it in the form of the distribution specification, `{"errors": [{"code": …, "message": …}]}`; token
servers and object stores in others. The text is from outside: at most one line of it is shown, and only printable text.
"""

from mica.errors import UserError
from mica.oci.documents import Fields, parse_document

_SHOWN_CHARACTERS = 200
_PLAIN_MEMBERS = ("details", "message", "error_description", "error")


def parse_reason(data: bytes) -> str:
    """Empty where the body gives none."""
    try:
        fields = parse_document(data, what="the answer")
        reasons = _listed(fields) or _plain(fields)
    except UserError:
        return ""
    text = " ".join("; ".join(dict.fromkeys(reasons)).split())[:_SHOWN_CHARACTERS].rstrip(" .")
    return text if text.isprintable() else ""


def told(reason: str) -> str:
    """The end of a sentence, in front of its full stop."""
    return f", saying: {reason}" if reason else ""


def _listed(fields: Fields) -> list[str]:
    found = [one.text("message") or one.text("code") for one in fields.objects("errors")]
    return [text for text in found if text]


def _plain(fields: Fields) -> list[str]:
    for name in _PLAIN_MEMBERS:
        if text := fields.text(name):
            return [text]
    return []
