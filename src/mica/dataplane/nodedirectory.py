"""The directory of a running node: one for the host, or a private one for a single run.

<node>/objects/            the object filesystem (`objectfs.py`)
<node>/layers/<name>/      mounted metadata images
<node>/service.sock        the service's socket
<node>/holder.sock         the holder's socket
<node>/node.json           facts for a successor
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mica.files import mapped_os_errors

ERROR_DIRECTORY = "e"
"""Name in the object filesystem's root: what is looked up below it is an error."""


@dataclass(frozen=True, slots=True)
class NodeDirectory:
    path: Path

    def create(self) -> None:
        with mapped_os_errors(f"make the node's directory {self.path}"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for directory in (self.objects, self.layers):
                # Do not look at a path that exists: it may be a mount whose server we are about to become.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o700)

    @property
    def objects(self) -> Path:
        return self.path / "objects"

    @property
    def layers(self) -> Path:
        return self.path / "layers"

    @property
    def service(self) -> Path:
        return self.path / "service.sock"

    @property
    def holder(self) -> Path:
        return self.path / "holder.sock"

    @property
    def facts(self) -> Path:
        return self.path / "node.json"

    @property
    def counts(self) -> Path:
        return self.path / "session.counts"

    @property
    def lock(self) -> Path:
        return self.path / "lock"


def read_facts(node: NodeDirectory) -> Mapping[str, Any]:
    """The facts that a node left for its successor; empty if they are damaged."""
    try:
        values = json.loads(node.facts.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
