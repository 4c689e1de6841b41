"""An identity belongs to one machine, and a stream to one device id.

On another machine the service records and does not deliver: a card that was moved and a copy of a card look the same,
and a copy that delivers under the original's id mixes two devices' histories. A person says which it is.

Under another device id the outbox begins another stream, as after a conflict: pending events are transferred into it.
A copy transfers what it recorded on its own machine; what it holds from before, the original delivers.
"""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Final

import pisync_agent.identity as identities
from pisync_agent.enrollment.machine import Machine, is_another
from pisync_agent.enrollment.state import MOVED
from pisync_agent.errors import AgentError
from pisync_agent.identity import Identity
from pisync_agent.outbox.models import DEVICE
from pisync_agent.outbox.outbox import Outbox

log = logging.getLogger(__name__)

_COPIED: Final = "copied"
"""The outbox's note of the stream, and the newest event in it, when the service first met another machine."""


def bound(home: Path, outbox: Outbox, identity: Identity | None, here: Machine) -> Identity | None:
    """Return the identity if it may be used on this machine, else None; bind it if it is not bound yet."""
    if identity is None:
        return None
    another = is_another(identity.machine, here.fingerprint)
    with contextlib.suppress(AgentError):  # a card that fails is reported elsewhere; tried again at the next start
        _note(outbox, identity, another=another)
    if another:
        log.warning("%s. Recording goes on, delivery waits", MOVED.format(device_id=identity.device_id))
        return None
    known = {**identity.machine, **here.fingerprint}
    if known != identity.machine:
        identity = dataclasses.replace(identity, machine=known)
        with contextlib.suppress(OSError):  # tried again at the next start
            identities.save(home, identity)
    return identity


def _note(outbox: Outbox, identity: Identity, *, another: bool) -> None:
    """Note under which id this stream is delivered, and up to which event it may be a copy of another machine's."""
    noted = outbox.note(DEVICE)
    if noted is None:
        outbox.set_note(DEVICE, identity.device_id)
    if another and not outbox.note(_COPIED):
        outbox.set_note(_COPIED, f"{outbox.stream} {outbox.state().last_seq}")
    elif not another and noted == identity.device_id and outbox.note(_COPIED):
        outbox.set_note(_COPIED, "")  # it was moved


def begin_stream_of(outbox: Outbox, device_id: str) -> None:
    """Begin another stream if this stream's events were delivered under another device id."""
    noted = outbox.note(DEVICE)
    if noted == device_id:
        return
    if noted is not None and outbox.state().last_seq:
        log.warning("this device was %s and is %s now: its outbox begins another stream", noted, device_id)
        copied = _copied_until(outbox)
        left = max(0, copied - outbox.state().delivered)
        others = f"; {left} events that were pending when it was copied are for {noted} to deliver" if left else ""
        outbox.start_new_stream(f"the device id was {noted} and is {device_id} now{others}", after=copied)
    outbox.set_note(DEVICE, device_id)
    if outbox.note(_COPIED):
        outbox.set_note(_COPIED, "")


def _copied_until(outbox: Outbox) -> int:
    stream, _, seq = (outbox.note(_COPIED) or "").partition(" ")
    return int(seq) if stream == outbox.stream and seq.isdecimal() else 0
