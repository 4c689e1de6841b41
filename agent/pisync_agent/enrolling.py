"""`pisync enroll`: a code becomes this device's identity, and the running service learns of it."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pisync_agent import identity as identities
from pisync_agent import local
from pisync_agent.cli import WrongUsage
from pisync_agent.errors import NotEnrolled, Refused, StoreUnusable
from pisync_agent.identity import Identity
from pisync_agent.outbox import files
from pisync_common.rules import check_id

CA_FILE: Final = "receiver-ca.pem"

Ask = Callable[[str | None], Identity]
"""Asks the receiver for an identity under this device id, or under one of its choosing. Raises DeliveryError."""


def enroll(
    home: Path, url: str, *, ask: Ask, device_id: str | None, again: bool, remark: Callable[[str], None]
) -> Identity:
    """Get an identity and keep it. Raises WrongUsage, RuleError, DeliveryError or StoreUnusable: the old one stays.

    An id that the user named is asked for as it is. Without one the device keeps the id it has, or proposes one of
    its own; what it only proposes is given up if the receiver refuses it.
    """
    current = _current(home, remark)
    if device_id is not None:
        check_id("device_id", device_id)
    if current is not None and not again:
        _check_same(current, url, device_id)
    identity = _asked(ask, device_id, current, same_receiver=current is not None and current.url == _bare(url))
    with files.errors(identities.path(home)):
        identity = _with_own_ca(home, identity)
        identities.save(home, identity)
    _tell_service(home, remark)
    return identity


def _asked(ask: Ask, device_id: str | None, current: Identity | None, *, same_receiver: bool) -> Identity:
    if device_id is not None:
        return ask(device_id)
    if current is not None and same_receiver:
        return ask(current.device_id)
    try:
        return ask(current.device_id if current is not None else identities.suggested_device_id())
    except Refused:
        return ask(None)  # the code may be for a certain id, or the proposed one taken


def _check_same(current: Identity, url: str, device_id: str | None) -> None:
    if current.url == _bare(url) and device_id in (None, current.device_id):
        return
    raise WrongUsage(
        f"this device is enrolled already, as {current.device_id} at {current.url}; nothing was changed. "
        "Another receiver or another id begins another history for it: add --again if that is meant"
    )


def _current(home: Path, remark: Callable[[str], None]) -> Identity | None:
    try:
        return identities.load(home)
    except NotEnrolled as error:
        if not os.access(identities.path(home), os.R_OK):
            raise StoreUnusable(str(error)) from error
        remark(str(error))
        return None


def _with_own_ca(home: Path, identity: Identity) -> Identity:
    """The authority's certificate is copied: the service may not see where it was, and a stick is pulled out."""
    if identity.ca_file is None:
        return identity
    copy = home / CA_FILE
    content = Path(identity.ca_file).read_bytes()
    home.mkdir(parents=True, exist_ok=True)
    new = copy.with_suffix(".new")
    new.write_bytes(content)
    files.sync_file(new)
    new.replace(copy)
    return dataclasses.replace(identity, ca_file=str(copy))


def _tell_service(home: Path, remark: Callable[[str], None]) -> None:
    try:
        local.reload(files.socket(home))
    except OSError:
        remark("the service did not answer; restart it, so that it uses the new identity")


def _bare(url: str) -> str:
    return url.rstrip("/")
