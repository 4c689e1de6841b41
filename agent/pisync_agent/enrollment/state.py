"""How far a device has come with its enrollment: what `status` and `doctor` show, and why a sync run is refused."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import pisync_agent.identity as identities
from pisync_agent.enrollment.machine import Machine, is_another
from pisync_agent.errors import NotEnrolled

PENDING: Final = "enroll.json"
"""The enrollment file that waits, in the agent's folder, for the receiver's answer."""
FILE: Final = "enroll-state.json"

MOVED: Final = (
    "this card was enrolled as {device_id} on another machine. If it was moved here: pisync enroll --moved. If it is a "
    "copy: pisync enroll URL --code CODE --new-device"
)
NOT_ENROLLED: Final = (
    "this device is not enrolled: nothing can be delivered, everything is kept. "
    "Ask an administrator for a code, then: pisync enroll URL --code CODE"
)

Kind = Literal["enrolled", "moved", "waiting", "refused", "invalid", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrollmentState:
    """What stands between this device and delivery.

    `moved`: enrolled on another machine. `waiting`, `refused`, `invalid`: an enrollment file waits for the receiver,
    was refused by it, or cannot be used. `none`: nothing was done yet.
    """

    kind: Kind
    detail: str = ""
    """For people, with what to do; empty if there is nothing to say."""


def state_of(home: Path, here: Machine) -> EnrollmentState:
    """Return the state, from the files in the agent's folder."""
    try:
        identity = identities.load(home)
    except NotEnrolled as error:
        return EnrollmentState(kind="none", detail=str(error))
    noted = _noted(home)
    if identity is not None:
        if is_another(identity.machine, here.fingerprint):
            return EnrollmentState(kind="moved", detail=MOVED.format(device_id=identity.device_id))
        return EnrollmentState(kind="enrolled", detail=noted.detail if noted else "")
    if noted is not None:
        return noted
    if (home / PENDING).exists():
        return EnrollmentState(kind="waiting", detail="an enrollment file is about to be used")
    return EnrollmentState(kind="none", detail=NOT_ENROLLED)


def note_state(home: Path, state: EnrollmentState | None) -> None:
    """Keep what an enrollment file met with, where the service and `status` find it; None: nothing. Raises OSError."""
    if state is None:
        (home / FILE).unlink(missing_ok=True)
    elif state != _noted(home):  # not each time: it is a write to the card
        identities.store(home / FILE, json.dumps(asdict(state)).encode())


def _noted(home: Path) -> EnrollmentState | None:
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        return EnrollmentState(**json.loads((home / FILE).read_text("utf-8")))
    return None
