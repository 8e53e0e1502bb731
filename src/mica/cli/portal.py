"""`mica portal`: the registry that makes thin images on demand, in the foreground."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import AuthfileOption, CertsOption, ConfigOption, InsecureOption, StateOption, parse_address

if TYPE_CHECKING:
    from mica.cli.registries import Access
    from mica.config import PortalConfig
    from mica.convert.converter import ConverterOptions, Platforms
    from mica.jobs.queue import JobQueue
    from mica.portal.policy import AccessList
    from mica.portal.server import Certificate


def portal(
    state: StateOption,
    config: ConfigOption = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Use this instead of the configuration's; port 0 takes a free one."),
    ] = None,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
) -> None:
    """Answer pulls of UPSTREAM/NAME:TAG with thin images, each made when it is first asked for. SIGTERM ends it.

    The section [portal] of the configuration says which names may be asked for, by whom, and where the layers go.
    """
    from mica.cli.places import Places
    from mica.cli.queues import opened_queue
    from mica.cli.registries import Access
    from mica.convert.converter import Converter
    from mica.httpbase import serving
    from mica.oci.registry import open_registry
    from mica.portal.answers import Portal
    from mica.portal.policy import Policy
    from mica.portal.server import PortalServer
    from mica.portal.shelf import SHELF_DIRECTORY, Shelf
    from mica.portal.thinimages import ThinImages, Timing
    from mica.publish.manager import ReleaseManager
    from mica.signals import EndSignals

    settings = Places(state, config=config).portal
    access = Access(insecure, authfile, certs, config)
    policy = Policy(settings.allow, settings.upstreams)
    asking = _access_list(settings)
    timing = Timing(settings.recheck_s, settings.patience_s)
    address = parse_address(listen or settings.listen)
    with (
        opened_queue(config) as queue,
        ReleaseManager.open(state, settings.repository) as manager,
        open_registry(access.options()) as client,
    ):
        manager.head()
        converter = Converter(manager, _converter_options(settings, access, queue))
        images = ThinImages(
            policy, Shelf(manager.directory(SHELF_DIRECTORY)), client, converter,
            platforms=_platforms(settings), timing=timing, conversions=settings.conversions,
        )  # fmt: skip
        server = PortalServer(address, Portal(images, asking), _certificate(settings))
        with EndSignals() as end, serving(server):
            sys.stdout.write(f"{server.url}\n")
            sys.stdout.flush()
            end.wait()
            converter.stop()


def _access_list(settings: "PortalConfig") -> "AccessList":
    from mica.portal.policy import AccessList, parse_tokens, parse_users

    users = parse_users(_secret(settings.users), str(settings.users)) if settings.users else {}
    tokens = parse_tokens(_secret(settings.tokens), str(settings.tokens)) if settings.tokens else frozenset()
    if (settings.users or settings.tokens) and not users and not tokens:
        from mica.errors import UserError

        raise UserError("The portal's files of users and tokens have no entry, so nobody could pull.")
    return AccessList(users, tokens)


def _secret(path: Path) -> bytes:
    from mica.errors import UserError
    from mica.files import mapped_os_errors

    with mapped_os_errors(f"read {path}"):
        if path.stat().st_mode & 0o077:
            raise UserError(f"{path} can be read by others.", hint=f"chmod 600 {path}")
        return path.read_bytes()


def _converter_options(settings: "PortalConfig", access: "Access", queue: "JobQueue | None") -> "ConverterOptions":
    from mica.cli.queues import maker_of
    from mica.convert.converter import ConverterOptions
    from mica.convert.layerbuilder import ConversionLimits
    from mica.convert.making import DEFAULT_JOBS

    gib = 1 << 30
    limits = ConversionLimits(max_layer_bytes=int(settings.max_layer_gib * gib))
    return ConverterOptions(
        access.source_options(), limits, wait_s=settings.patience_s, max_image_bytes=int(settings.max_image_gib * gib),
        open_maker=maker_of(queue, limits, jobs=DEFAULT_JOBS),
    )  # fmt: skip


def _platforms(settings: "PortalConfig") -> "Platforms":
    from mica.convert.converter import Platforms
    from mica.oci.platforms import Platform

    return Platforms(tuple(map(Platform.parse, settings.platforms)))


def _certificate(settings: "PortalConfig") -> "Certificate | None":
    from mica.portal.server import Certificate

    return Certificate(settings.certificate, settings.key) if settings.certificate else None
