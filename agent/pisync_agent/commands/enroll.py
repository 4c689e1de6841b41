"""`pisync enroll`: a code becomes this device's identity, and the running service uses it."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pisync_agent.config as config
import pisync_agent.identity as identities
from pisync_agent.clock import SystemClock
from pisync_agent.commands.usage import DONE, WrongUsage, settings_of
from pisync_agent.errors import NotEnrolled, Refused, StoreUnusable
from pisync_agent.identity import Identity
from pisync_agent.outbox import files
from pisync_agent.service import protocol
from pisync_common.rules import check_id

CA_FILE: Final = "receiver-ca.pem"

Ask = Callable[[str | None], Identity]
"""Asks the receiver for an identity under this device id, or under an id of its choice. Raises DeliveryError."""


def enroll(arguments: argparse.Namespace) -> int:
    import pisync_agent.client as client  # httpx is imported only where it is needed

    def ask(device_id: str | None) -> Identity:
        return client.enroll(
            arguments.url,
            arguments.code,
            device_id=device_id,
            insecure_http=arguments.insecure_http,
            ca_file=arguments.ca,
            clock=SystemClock(),
        )

    home = settings_of(arguments)[config.HOME]
    given = enroll_device(home, arguments.url, ask=ask, device_id=arguments.device_id, again=arguments.again)
    print(f"enrolled as {given.device_id} at {given.url}")
    return DONE


def enroll_device(home: Path, url: str, *, ask: Ask, device_id: str | None, again: bool) -> Identity:
    """Get an identity and store it. Raises WrongUsage, RuleError, DeliveryError or StoreUnusable: the old one stays.

    An id from the user is requested as it is. Without one the device keeps its id, or proposes an id of its own, which
    it gives up if the receiver refuses it.
    """
    current = _current(home)
    if device_id is not None:
        check_id("device_id", device_id)
    if current is not None and not again:
        _check_same(current, url, device_id)
    identity = _request(ask, device_id, current, same_receiver=current is not None and current.url == _bare(url))
    with files.errors(identities.path(home)):
        identity = _with_own_ca(home, identity)
        identities.save(home, identity)
    _reload_service(home)
    return identity


def _request(ask: Ask, device_id: str | None, current: Identity | None, *, same_receiver: bool) -> Identity:
    if device_id is not None:
        return ask(device_id)
    if current is not None and same_receiver:
        return ask(current.device_id)
    try:
        return ask(current.device_id if current is not None else identities.suggested_device_id())
    except Refused:
        return ask(None)  # the code may be for a certain id, or the proposed id taken


def _check_same(current: Identity, url: str, device_id: str | None) -> None:
    if current.url == _bare(url) and device_id in (None, current.device_id):
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


def _with_own_ca(home: Path, identity: Identity) -> Identity:
    """Copy the authority's certificate: the service may not be able to read the original, or a stick is removed."""
    if identity.ca_file is None:
        return identity
    copy = home / CA_FILE
    content = Path(identity.ca_file).read_bytes()
    files.make_folder(home)
    new = copy.with_suffix(".new")
    new.write_bytes(content)
    files.sync_file(new)
    new.replace(copy)
    return dataclasses.replace(identity, ca_file=str(copy))


def _reload_service(home: Path) -> None:
    try:
        protocol.reload(files.socket(home))
    except OSError:
        _warn("the service did not answer; restart it, so that it uses the new identity")


def _bare(url: str) -> str:
    return url.rstrip("/")


def _warn(text: str) -> None:
    print(f"pisync: {text}", file=sys.stderr)
