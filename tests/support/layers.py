"""Layers in repositories: converted by us from archives, or put there as the stock tools leave them."""

import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.repositories import Repository, opened_client
from tests.unit.oci.samples import make_sample, write_layout

from mica.convert.making import ProcessMaker
from mica.convert.plan import SilentObserver
from mica.convert.publishing import Conversion, WantedImage, convert, describe
from mica.fetch.client import RepositoryClient
from mica.oci.reference import Reference
from mica.oci.source import open_image
from mica.repo.catalog import NestedCatalog
from mica.thin.record import ImageRecord


def publish_layers(repository: Repository, *tars: bytes) -> Conversion:
    """An image of these layers, bottom first, into a repository."""
    with (
        tempfile.TemporaryDirectory() as place,
        open_image(f"oci:{write_layout(Path(place) / 'image', make_sample(list(tars)))}") as image,
        repository.manager() as manager,
    ):
        descriptor = describe(image, repository.fqrn, "a/b:1")
        config = json.loads(json.dumps(image.config.document()))
        record = ImageRecord(Reference.parse("a/b:1"), image.manifest_digest, {}, config, descriptor)
        wanted = [WantedImage(image, record)]
        return convert(wanted, manager, ProcessMaker(manager), observer=SilentObserver(), stop=threading.Event())


@contextlib.contextmanager
def opened_root(
    repository: Repository, cache: Path, *, url: str | None = None
) -> Iterator[tuple[RepositoryClient, NestedCatalog]]:
    """A client with a cache of its own, and the root catalog of the newest revision."""
    with opened_client(repository, cache, url=url) as client:
        manifest = client.update().manifest
        yield client, NestedCatalog(b"", manifest.root_catalog, manifest.root_catalog_size)
