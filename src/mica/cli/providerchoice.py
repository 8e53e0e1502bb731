"""The choice of a provider for a run whose layers no node of this host gives."""

from pathlib import Path
from typing import TYPE_CHECKING

from mica.files import mapped_os_errors
from mica.layers.stack import Method

if TYPE_CHECKING:
    from mica.cli.places import Places
    from mica.daemon.earlyservice import EarlyService
    from mica.layers.provider import LayerProvider
    from mica.thin.descriptor import ThinDescriptor
    from mica.thin.trace import Piece


def choose_provider(
    descriptor: "ThinDescriptor",
    places: "Places",
    directory: Path,
    method: Method,
    *,
    program: str | None = None,
    recorded: "list[Piece] | None" = None,
    early: "EarlyService | None" = None,
) -> "LayerProvider":
    """Call it in a private mount namespace, because all runs share `directory`, which is made if it is missing.

    The counter of `places` gets what servers transfer. `recorded` gets the content that was asked for, if the method
    knows it. Raises NotFoundError for a repository whose place is not known.
    """
    one_by_one = places.kernel_facts().one_by_one
    with mapped_os_errors(f"make the mount directory {directory}"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if method is Method.EXTERNAL:
        from mica.providers.external import ExternalProvider
        from mica.providers.readable import ReadableTrees

        return ReadableTrees(ExternalProvider(places.config.external), directory, one_by_one)
    locations = [places.locate(fqrn) for fqrn in sorted(descriptor.repositories)]
    if method is Method.REPOSITORY:
        from mica.providers.readable import ReadableTrees
        from mica.providers.repository import RepositoryProvider

        return ReadableTrees(
            RepositoryProvider(locations, places.cache, directory, places.counter), directory, one_by_one
        )
    from mica.providers.private import PrivateProvider

    return PrivateProvider(
        locations=locations, cache=places.cache, directory=directory, method=method, counter=places.counter,
        program=program, early=early, recorded=recorded, one_by_one=one_by_one,
    )  # fmt: skip
