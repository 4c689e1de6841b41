"""`pisync set-url`: the receiver has another address; device, token and history stay."""

import argparse
import dataclasses
from pathlib import Path
from typing import Final

import pisync_agent.config as config
import pisync_agent.identity as identities
from pisync_agent.clock import SystemClock
from pisync_agent.commands.command import Command
from pisync_agent.commands.enroll import add_address_flags, read_authority, reload_service
from pisync_agent.commands.usage import DONE, settings_of
from pisync_agent.enrollment.enrolling import keep_authority
from pisync_agent.errors import DeliveryError, NotEnrolled, Refused


def set_url(arguments: argparse.Namespace) -> int:
    from pisync_agent.answers import RETRIED  # httpx is imported only where it is needed
    from pisync_agent.enrollment import addresses
    from pisync_agent.network.authorities import private_trust

    home = settings_of(arguments)[config.HOME]
    identity = identities.load(home)
    if identity is None:
        raise NotEnrolled("this device is not enrolled: pisync enroll URL --code CODE")
    ca = None if arguments.ca is None else read_authority(arguments.ca, check=private_trust)
    moved = dataclasses.replace(
        identity,
        url=arguments.url,
        others=tuple(arguments.also),
        insecure_http=arguments.insecure_http,
        ca_file=identity.ca_file if arguments.ca is None else str(Path(arguments.ca).expanduser().absolute()),
    )
    try:
        addresses.prove(moved, stream=addresses.NO_STREAM, clock=SystemClock())
    except DeliveryError as error:
        hint = " If it is another receiver: pisync enroll URL --code CODE --again" if isinstance(error, Refused) else ""
        said = str(error).removesuffix(".").replace(RETRIED, "repeat this command")
        error.args = (f"{moved.url} was not stored, {identity.url} stays: {said}.{hint}",)
        raise
    if ca is not None:
        moved = dataclasses.replace(moved, ca_file=str(keep_authority(home, ca)))
    identities.save(home, moved)
    reload_service(home)
    print(f"{moved.device_id} delivers to {moved.url} from now on")
    return DONE


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the receiver's new address: https://pisync.example.org")
    add_address_flags(parser)


SET_URL: Final = Command(
    run=set_url,
    example="set-url https://pisync.example.org --also https://backup.example.org",
    arguments=_arguments,
    more="The receiver there must know this device's token; otherwise nothing is changed.",
)
