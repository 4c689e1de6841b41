"""Getting an identity for a code, and storing it. The code is spent only where the answer can be stored.

A device id changes only where a person says so: a device that has an id, or has delivered under an id, asks for that id
and no other.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pisync_agent.identity as identities
from pisync_agent.enrollment.machine import Machine, is_another
from pisync_agent.enrollment.state import MOVED, note_state
from pisync_agent.errors import AlreadyEnrolled, Refused, StoreUnusable
from pisync_agent.identity import Identity
from pisync_agent.outbox import files
from pisync_agent.outbox.models import DEVICE
from pisync_agent.outbox.reader import OutboxReader
from pisync_common.rules import check_id

CA_FILE: Final = "receiver-ca.pem"
TAKEN: Final = "device_id_taken"
"""The receiver's problem for an id that another device has."""

Ask = Callable[[str | None], Identity]
"""Asks the receiver for an identity under this device id, or under an id of its choice. Raises DeliveryError."""


def enroll_device(
    home: Path,
    url: str,
    *,
    ask: Ask,
    here: Machine,
    current: Identity | None,
    device_id: str | None = None,
    again: bool = False,
    new_device: bool = False,
    ca: bytes | None = None,
) -> Identity:
    """Get an identity and store it. Raises AlreadyEnrolled, RuleError, DeliveryError or StoreUnusable: the old stays.

    An id from the user is requested as it is. Without it the device keeps the id it has or had, unless it is to be a
    `new_device`; otherwise it proposes an id of its own, and another if the receiver refuses that. `ca` is the content
    of the file of the only authority to trust.
    """
    if device_id is not None:
        check_id("device_id", device_id)
    if current is not None and not new_device:
        _check_same(current, url, device_id, here, again=again)
    known = current.device_id if current is not None else delivered_as(home)
    with _unwritable(home, "the code was not used, and nothing was changed"):
        identities.prove_writable(home, room=len(ca or b""))
        first_id = device_id or (_proposal(home, here, known) if new_device else known)
        first_id = first_id or identities.proposed_id(home, here)
    keeps = device_id is None and not new_device and known is not None
    identity = _request(home, ask, here, first_id, final=device_id is not None or keeps, keeps=keeps)
    with _unwritable(home, f"the receiver knows this device as {identity.device_id} now; the same code works again"):
        identity = dataclasses.replace(identity, machine=here.fingerprint)
        if ca is not None:
            identity = dataclasses.replace(identity, ca_file=str(keep_authority(home, ca)))
        identities.save(home, identity)
    with contextlib.suppress(OSError):
        note_state(home, None)  # what an enrollment file met with earlier is settled
    return identity


def delivered_as(home: Path) -> str | None:
    """Return the device id under which this folder's events were delivered; "" if it was not noted, None if none were.

    So a device whose identity was lost is not enrolled as another by mistake.
    """
    with contextlib.suppress(StoreUnusable):
        if files.database(home).exists():
            with OutboxReader(home) as outbox:
                return outbox.note(DEVICE) or ("" if outbox.state().delivered else None)
    return None


def keep_authority(home: Path, content: bytes) -> Path:
    """Copy the authority's certificate: the service may not be able to read the original, or a stick is removed."""
    identities.store(home / CA_FILE, content)
    return home / CA_FILE


def _proposal(home: Path, here: Machine, known: str | None) -> str:
    """Return an id to propose that is not the known one."""
    proposed = identities.proposed_id(home, here)
    return identities.propose_id(home, here) if proposed == known else proposed


def _request(home: Path, ask: Ask, here: Machine, device_id: str, *, final: bool, keeps: bool) -> Identity:
    """Ask for an identity under `device_id`; unless that is `final`, under another if it is refused."""
    try:
        return ask(device_id)
    except Refused as error:
        if keeps and error.problem == TAKEN:
            raise Refused(
                f"{error}. This device is {device_id}, and stays so; with --new-device it begins as another device",
                kind=error.kind,
                problem=error.problem,
            ) from error
        if final:
            raise
        if error.problem != TAKEN:
            return ask(None)  # the code may be for a certain id, which the receiver names
    with _unwritable(home, "the code was not used, and nothing was changed"):
        another = identities.propose_id(home, here)
    return ask(another)


def _check_same(current: Identity, url: str, device_id: str | None, here: Machine, *, again: bool) -> None:
    """Raise AlreadyEnrolled unless the device stays what it is, or a person said what it becomes."""
    if is_another(current.machine, here.fingerprint) and device_id is None:
        raise AlreadyEnrolled(f"{MOVED.format(device_id=current.device_id)}. Nothing was changed")
    if again or (current.url == url.rstrip("/") and device_id in (None, current.device_id)):
        return
    raise AlreadyEnrolled(
        f"this device is enrolled already, as {current.device_id} at {current.url}; nothing was changed. If the same "
        "receiver has another address: pisync set-url URL. Another receiver or another id begins another history for "
        "this device: add --again if that is intended"
    )


@contextlib.contextmanager
def _unwritable(home: Path, state: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        denied = isinstance(error, PermissionError)
        then = "Repeat it with sudo" if denied else "Check the disk and who may write there, then enroll again"
        raise StoreUnusable(f"{home} cannot be written ({error.strerror or error}): {state}. {then}") from error
