"""The directory of a running node: one for the host, or a private one for a single run.

<node>/objects/            the object filesystem (`objectfs.py`)
<node>/layers/<name>/      mounted metadata images
<node>/service.sock        the service's socket
<node>/holder.sock         the holder's socket
<node>/node.json           what a successor has to know
"""

from dataclasses import dataclass
from pathlib import Path

from mica.files import mapped_os_errors

ERROR_DIRECTORY = "e"
ANY_DIRECTORY = "any"
"""What the object filesystem has besides the numbers of repositories."""


@dataclass(frozen=True, slots=True)
class NodeDirectory:
    path: Path

    def create(self) -> None:
        with mapped_os_errors(f"make the node's directory {self.path}"):
            for directory in (self.path, self.objects, self.layers):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)

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
