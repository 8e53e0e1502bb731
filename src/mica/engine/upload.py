"""A new layer on a thin image: it stays on this host, or is uploaded to a portal that makes it thin too."""

import enum
from typing import Protocol

from mica.errors import UserError


class CommitMode(enum.StrEnum):
    """LOCAL: an ordinary layer of this host. UPLOAD: the portal publishes it, so that the new image is thin again."""

    LOCAL = "local"
    UPLOAD = "upload"


class LayerUpload(Protocol):
    def begin(self, layer_id: str) -> None:
        """Called before the layer's archive is given out. Raises MicaError if the layer cannot be uploaded."""


class LocalOnly:
    def begin(self, layer_id: str) -> None:
        """Nothing to do: the layer stays here."""


class MissingPortal:
    """For hosts that are configured to upload, but without a portal."""

    def begin(self, layer_id: str) -> None:
        raise UserError(
            f"New layer {layer_id[:12]} is to be uploaded, but no portal is configured.",
            hint="Configure one, or keep new layers on this host: commit=local.",
        )


def upload_for(mode: CommitMode) -> LayerUpload:
    return MissingPortal() if mode is CommitMode.UPLOAD else LocalOnly()
