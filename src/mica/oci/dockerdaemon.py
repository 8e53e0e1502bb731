"""Images of a Docker daemon on this machine: `GET /images/<name>/get` is a `docker save` archive.

The archive is spooled to an unnamed file, because the stream names its layers only at its end. Any thread.
"""

import contextlib
import http.client
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from mica.errors import NotFoundError, TemporaryError, UserError
from mica.files import mapped_os_errors, write_all
from mica.oci.dockerarchive import image_in_docker_archive
from mica.oci.image import Image
from mica.oci.reference import Reference
from mica.oci.tarindex import indexed_tar

DOCKER_SOCKET = Path("/var/run/docker.sock")
_READ_SIZE = 1 << 20
_TIMEOUT_S = 300


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


@contextlib.contextmanager
def open_docker_daemon(
    name: str, *, socket_path: Path = DOCKER_SOCKET, spool_path: Path | None = None
) -> Iterator[Image]:
    """An image that the daemon has. `spool_path` is a directory with room for it."""
    reference = Reference.parse(name)
    with mapped_os_errors("spool an image of the Docker daemon"):
        file = tempfile.TemporaryFile(dir=spool_path)  # noqa: SIM115 - the block is below, without the mapping
    with file:
        with contextlib.closing(_UnixConnection(socket_path)) as connection:
            _download(connection, reference, file.fileno())
        with indexed_tar(file.fileno(), Path(f"docker-daemon:{name}")) as index:
            yield image_in_docker_archive(index, name=f"docker-daemon:{name}")


def _download(connection: http.client.HTTPConnection, reference: Reference, fd: int) -> None:
    try:
        connection.request("GET", f"/images/{quote(reference.text, safe='')}/get")
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise _refused(response, reference)
        while data := response.read(_READ_SIZE):
            with mapped_os_errors("spool an image of the Docker daemon"):
                write_all(fd, data)
        if response.length:
            # Reads by pieces end in the same way at a cut answer and at a whole one.
            raise http.client.IncompleteRead(b"", response.length)
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise TemporaryError("No Docker daemon answers on this machine.", hint="Is docker running?") from error
    except PermissionError as error:
        raise UserError("The Docker daemon's socket cannot be opened.", hint="Run as root or in its group.") from error
    except (OSError, http.client.HTTPException) as error:
        raise TemporaryError(f"The Docker daemon broke off while sending {reference}: {error}.") from error


def _refused(response: http.client.HTTPResponse, reference: Reference) -> UserError:
    if response.status == http.HTTPStatus.NOT_FOUND:
        return NotFoundError(f"The Docker daemon has no image {reference}.", hint="docker images lists what it has.")
    return UserError(f"The Docker daemon refuses to send {reference}: {response.status} {response.reason[:100]}.")
