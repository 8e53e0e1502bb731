"""`mica portal`: the registry that makes thin images on demand, in the foreground."""

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mica.cli.options import AuthfileOption, CertsOption, ConfigOption, InsecureOption, StateOption, parse_address

if TYPE_CHECKING:
    from mica.cli.registries import Access
    from mica.config import PortalConfig
    from mica.portal.policy import AccessList
    from mica.portal.server import Certificate
    from mica.thin.converter import ConverterOptions, Platforms


def portal(
    state: StateOption,
    config: ConfigOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Instead of what the configuration says; port 0: any.")
    ] = None,
    insecure: InsecureOption = False,
    authfile: AuthfileOption = None,
    certs: CertsOption = None,
) -> None:
    """Answer pulls of UPSTREAM/NAME:TAG with thin images, each made when it is first asked for. SIGTERM ends it.

    The section [portal] of the configuration says which names may be asked for, by whom, and where the layers go.
    """
    from mica.cli.places import Places
    from mica.cli.registries import Access
    from mica.oci.registry import open_registry
    from mica.portal.answers import Portal
    from mica.portal.policy import Policy
    from mica.portal.server import PortalServer, serving
    from mica.portal.shelf import Shelf
    from mica.portal.thinimages import ThinImages, Timing
    from mica.publish.manager import ReleaseManager
    from mica.thin.converter import Converter

    settings = Places(state, config=config).portal
    access = Access(insecure, authfile, certs)
    policy = Policy(settings.allow, settings.upstreams)
    asking = _access_list(settings)
    timing = Timing(settings.recheck_s, settings.patience_s)
    address = parse_address(listen or settings.listen)
    with ReleaseManager.open(state, settings.repository) as manager, open_registry(access.options()) as client:
        manager.head()
        converter = Converter(manager, _converter_options(settings, access))
        images = ThinImages(
            policy, Shelf(manager.thin), client, converter,
            platforms=_platforms(settings), timing=timing, conversions=settings.conversions,
        )  # fmt: skip
        server = PortalServer(address, Portal(images, asking), _certificate(settings))
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        with serving(server):
            sys.stdout.write(f"{server.url}\n")
            sys.stdout.flush()
            stop.wait()
            converter.stop()


def _access_list(settings: "PortalConfig") -> "AccessList":
    from mica.portal.policy import AccessList, parse_tokens, parse_users

    users = parse_users(_secret(settings.users), str(settings.users)) if settings.users else {}
    tokens = parse_tokens(_secret(settings.tokens), str(settings.tokens)) if settings.tokens else frozenset()
    if (settings.users or settings.tokens) and not users and not tokens:
        from mica.errors import UserError

        raise UserError("The files of users and tokens name nobody who may ask the portal.")
    return AccessList(users, tokens)


def _secret(path: Path) -> bytes:
    from mica.errors import UserError
    from mica.files import mapped_os_errors

    with mapped_os_errors(f"read {path}"):
        if path.stat().st_mode & 0o077:
            raise UserError(f"{path} can be read by others.", hint=f"chmod 600 {path}")
        return path.read_bytes()


def _converter_options(settings: "PortalConfig", access: "Access") -> "ConverterOptions":
    from mica.thin.building import ConversionLimits
    from mica.thin.converter import ConverterOptions

    gib = 1 << 30
    limits = ConversionLimits(max_layer_bytes=int(settings.max_layer_gib * gib))
    return ConverterOptions(
        access.source_options(), limits, wait_s=settings.patience_s, max_image_bytes=int(settings.max_image_gib * gib)
    )


def _platforms(settings: "PortalConfig") -> "Platforms":
    from mica.oci.platforms import Platform
    from mica.thin.converter import Platforms

    return Platforms(tuple(map(Platform.parse, settings.platforms)))


def _certificate(settings: "PortalConfig") -> "Certificate | None":
    from mica.portal.server import Certificate

    return Certificate(settings.certificate, settings.key) if settings.certificate else None
