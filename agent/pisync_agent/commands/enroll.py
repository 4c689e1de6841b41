"""`pisync enroll`: a code becomes this device's identity, and the running service uses it."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pisync_agent.config as config
import pisync_agent.identity as identities
from pisync_agent.clock import SystemClock
from pisync_agent.commands.usage import DONE, WrongUsage, settings_of
from pisync_agent.errors import NotEnrolled, Refused, StoreUnusable, Unreachable
from pisync_agent.identity import Identity
from pisync_agent.outbox import files
from pisync_agent.service import protocol
from pisync_common.rules import check_id

CA_FILE: Final = "receiver-ca.pem"
TAKEN: Final = "device_id_taken"
"""The receiver's problem for an id that another device has."""

Ask = Callable[[str | None], Identity]
"""Asks the receiver for an identity under this device id, or under an id of its choice. Raises DeliveryError."""


def enroll(arguments: argparse.Namespace) -> int:
    import pisync_agent.client as client  # httpx is imported only where it is needed
    from pisync_agent.network.authorities import private_trust

    code = identities.checked_code(arguments.code)
    url = identities.checked_url(arguments.url, insecure_http=arguments.insecure_http)
    client.parsed_url(url)

    def ask(device_id: str | None) -> Identity:
        return client.enroll(
            url,
            code,
            device_id=device_id,
            insecure_http=arguments.insecure_http,
            ca_file=arguments.ca,
            clock=SystemClock(),
        )

    home = settings_of(arguments)[config.HOME]
    ca = None if arguments.ca is None else _authority(arguments.ca, check=private_trust)
    given = enroll_device(home, url, ask=ask, device_id=arguments.device_id, again=arguments.again, ca=ca)
    print(f"enrolled as {given.device_id} at {given.url}")
    return DONE


def enroll_device(
    home: Path, url: str, *, ask: Ask, device_id: str | None, again: bool, ca: bytes | None = None
) -> Identity:
    """Get an identity and store it. Raises WrongUsage, RuleError, DeliveryError or StoreUnusable: the old one stays.

    An id from the user is requested as it is. Without one the device keeps its id, or proposes an id of its own; if the
    receiver refuses that, another. `ca` is the content of the file of the only authority to trust.

    The folder is proved writable first, for the code is spent as soon as the receiver is asked.
    """
    current = _current(home)
    if device_id is not None:
        check_id("device_id", device_id)
    if current is not None and not again:
        _check_same(current, url, device_id)
    with _unwritable(home, "the code was not used, and nothing was changed"):
        identities.prove_writable(home, room=len(ca or b""))
        first_id = device_id or _first_id(home, current)
    identity = _request(home, ask, first_id, final=device_id is not None or _at(url, current))
    with _unwritable(home, f"the receiver knows this device as {identity.device_id} now; the same code works again"):
        if ca is not None:
            identity = dataclasses.replace(identity, ca_file=str(_own_ca(home, ca)))
        identities.save(home, identity)
    _reload_service(home)
    return identity


def _first_id(home: Path, current: Identity | None) -> str:
    return identities.proposed_id(home) if current is None else current.device_id


def _at(url: str, current: Identity | None) -> bool:
    """Return whether this device has an identity at that receiver."""
    return current is not None and current.url == url.rstrip("/")


def _request(home: Path, ask: Ask, device_id: str, *, final: bool) -> Identity:
    """Ask for an identity under `device_id`; unless that is `final`, under another if it is refused."""
    try:
        return ask(device_id)
    except Refused as error:
        if final:
            raise
        if error.problem != TAKEN:
            return ask(None)  # the code may be for a certain id, which the receiver names
    with _unwritable(home, "the code was not used, and nothing was changed"):
        another = identities.propose_id(home)
    return ask(another)


@contextmanager
def _unwritable(home: Path, state: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnusable(
            f"{home} cannot be written ({error.strerror or error}): {state}. Check the disk and who may write there, "
            "then enroll again"
        ) from error


def _check_same(current: Identity, url: str, device_id: str | None) -> None:
    if _at(url, current) and device_id in (None, current.device_id):
        return
    raise WrongUsage(
        f"this device is enrolled already, as {current.device_id} at {current.url}; nothing was changed. "
        "Another receiver or another id begins another history for it: add --again if that is intended"
    )


def _current(home: Path) -> Identity | None:
    try:
        return identities.load(home)
    except NotEnrolled as error:
        if not os.access(identities.path(home), os.R_OK):
            raise StoreUnusable(str(error)) from error
        _warn(str(error))
        return None


def _authority(name: str, *, check: Callable[[str], object]) -> bytes:
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


def _own_ca(home: Path, content: bytes) -> Path:
    """Copy the authority's certificate: the service may not be able to read the original, or a stick is removed."""
    copy = home / CA_FILE
    files.make_folder(home)
    new = copy.with_suffix(".new")
    new.write_bytes(content)
    files.sync_file(new)
    new.replace(copy)
    return copy


def _reload_service(home: Path) -> None:
    try:
        protocol.reload(files.socket(home))
    except OSError:
        _warn("the service did not answer; restart it, so that it uses the new identity")


def _warn(text: str) -> None:
    print(f"pisync: {text}", file=sys.stderr)
