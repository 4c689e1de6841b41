"""`pisync enroll`: a code becomes this device's identity, and the running service uses it."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pisync_agent.config as config
import pisync_agent.identity as identities
from pisync_agent.clock import SystemClock
from pisync_agent.commands.command import Command
from pisync_agent.commands.usage import DONE, WrongUsage, settings_of
from pisync_agent.enrollment.enrolling import enroll_device
from pisync_agent.enrollment.machine import read_machine
from pisync_agent.errors import DeliveryError, NotEnrolled, StoreUnusable, Unreachable
from pisync_agent.identity import Identity
from pisync_agent.outbox import files
from pisync_agent.service import protocol
from pisync_agent.service.access import acting_as_owner

_NOT_RETRIED: Final = "enrollment is not retried automatically: enroll again with the same code"


def enroll(arguments: argparse.Namespace) -> int:
    if arguments.moved:
        if arguments.url or arguments.code or arguments.device_id or arguments.again or arguments.new_device:
            raise WrongUsage(
                "--moved keeps the identity as it is, and stands alone; a copy needs URL, --code CODE and --new-device "
                "instead. Nothing was changed"
            )
        return _accept_machine(arguments)
    if arguments.url is None or arguments.code is None:
        raise WrongUsage("enroll needs the receiver's URL and --code CODE; a card that was moved needs --moved alone")
    import pisync_agent.client as client  # httpx is imported only where it is needed
    from pisync_agent.answers import RETRIED
    from pisync_agent.network.authorities import private_trust

    code = identities.checked_code(arguments.code)
    url, *others = (
        identities.checked_url(each, insecure_http=arguments.insecure_http) for each in (arguments.url, *arguments.also)
    )
    client.parsed_url(url)

    def ask(device_id: str | None) -> Identity:
        try:
            given = client.enroll(
                url,
                code,
                device_id=device_id,
                insecure_http=arguments.insecure_http,
                ca_file=arguments.ca,
                clock=SystemClock(),
            )
        except DeliveryError as error:
            error.args = (str(error).replace(RETRIED, _NOT_RETRIED),)
            raise
        return given.at(url, *others)

    home = settings_of(arguments)[config.HOME]
    ca = None if arguments.ca is None else read_authority(arguments.ca, check=private_trust)
    if sys.stderr.isatty():
        warn(f"asking {url} …")
    given = enroll_device(
        home,
        url,
        ask=ask,
        here=read_machine(),
        current=current_identity(home),
        device_id=arguments.device_id,
        again=arguments.again,
        new_device=arguments.new_device,
        ca=ca,
    )
    reload_service(home)
    print(f"enrolled as {given.device_id} at {given.url}")
    return DONE


def enroll_file(arguments: argparse.Namespace) -> int:
    """Take up an enrollment file; the service enrolls."""
    from pisync_agent.enrollment import zero_touch

    home = config.settings_from(arguments)[config.HOME]
    places = zero_touch.BOOT_FILES if arguments.file is None else (Path(arguments.file).absolute(),)
    file = next((place for place in places if place.exists()), None)
    if file is None:
        raise WrongUsage(f"there is no enrollment file at {', '.join(map(str, places))}")
    print(zero_touch.take_up(file, home, read_machine(), as_owner=partial(acting_as_owner, home)))
    reload_service(home)
    return DONE


def _accept_machine(arguments: argparse.Namespace) -> int:
    """Bind the identity to this machine: its card was moved here."""
    home = settings_of(arguments)[config.HOME]
    identity = identities.load(home)
    if identity is None:
        raise NotEnrolled("this device has no identity to keep: pisync enroll URL --code CODE")
    identities.save(home, dataclasses.replace(identity, machine=read_machine().fingerprint))
    reload_service(home)
    print(f"this machine is {identity.device_id} from now on, at {identity.url}")
    return DONE


def current_identity(home: Path) -> Identity | None:
    """Return the identity; None, with a warning, if it is damaged. Raises StoreUnusable if it is not this user's."""
    try:
        return identities.load(home)
    except NotEnrolled as error:
        if not os.access(identities.path(home), os.R_OK):
            raise StoreUnusable(str(error)) from error
        warn(str(error))
        return None


def read_authority(name: str, *, check: Callable[[str], object]) -> bytes:
    """Return the content of the file of a certificate authority. Raises WrongUsage if it cannot be used."""
    try:
        file = Path(name).expanduser().absolute()
        content = file.read_bytes()
        check(str(file))
    except OSError as error:
        raise WrongUsage(f"--ca: {name} cannot be read ({error.strerror or error}); the code was not used") from error
    except (ValueError, RuntimeError, Unreachable) as error:
        raise WrongUsage(f"--ca: {name!r} is not a PEM file with a certificate; the code was not used") from error
    return content


def reload_service(home: Path) -> None:
    """Have the service use the identity that is stored now."""
    try:
        protocol.reload(files.socket(home))
    except OSError:
        warn("the service did not answer; restart it, so that it uses the new identity")


def warn(text: str) -> None:
    print(f"pisync: {text}", file=sys.stderr)


def add_address_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--also", metavar="URL", action="append", default=[], help="another address of the receiver, for when URL fails"
    )
    parser.add_argument(
        "--insecure-http",
        action="store_true",
        help="allow plain HTTP: others on the network can read and change everything",
    )
    parser.add_argument("--ca", metavar="FILE", help="trust the private certificate authority in this PEM file")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", help="the receiver's address: https://pisync.example.org")
    parser.add_argument("--code", metavar="CODE", help="the code an administrator gave you")
    parser.add_argument(
        "--device-id", metavar="ID", help="the name of this device; a name that is taken needs a code made for it"
    )
    add_address_flags(parser)
    parser.add_argument("--again", action="store_true", help="change to another receiver, or to another id")
    parser.add_argument("--new-device", action="store_true", help="become another device, with another id")
    parser.add_argument("--moved", action="store_true", help="keep the identity: its card was moved to this machine")


def _file_argument(parser: argparse.ArgumentParser) -> None:
    what = "default: pisync-enroll.toml on the boot partition, or /etc/pisync/enroll.toml"
    parser.add_argument("file", metavar="FILE", nargs="?", help=what)


ENROLL: Final = Command(
    run=enroll,
    example="enroll https://pisync.example.org --code K7MQ-2XPD-9RTA-WW4Z",
    arguments=_arguments,
)
ENROLL_FILE: Final = Command(
    run=enroll_file,
    example="enroll-file /media/usb/pisync-enroll.toml",
    arguments=_file_argument,
    more="It is moved into the agent's folder, and the service enrolls as soon as there is a link.",
)
