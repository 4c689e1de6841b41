"""The service, its socket, and the enrollment of the device."""

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pisync_agent.identity as identities
from pisync_agent.doctor.disk import output_of
from pisync_agent.doctor.findings import Finding, bad, ok, skipped, warn
from pisync_agent.doctor.folder import user_name
from pisync_agent.doctor.subject import Subject
from pisync_agent.enrollment.machine import read_machine
from pisync_agent.enrollment.state import EnrollmentState, state_of
from pisync_agent.outbox import files
from pisync_common import __version__

UNIT: Final = "pisync-agent"

_PROPERTIES: Final = ("LoadState", "ActiveState", "SubState", "Result", "NRestarts", "UnitFileState", "StatusText")
_PID: Final = re.compile(r"process (\d+)")
_STATES: Final = {
    "T": "it was stopped by a signal (SIGSTOP)",
    "D": "it waits for the disk, which does not answer",
    "Z": "it has ended, and its parent has not noticed",
}
_UNSETTLED: Final = {
    "moved": (
        "This card was enrolled on another machine: it records, and delivers nothing until you say which it is.",
        "If it was moved here: sudo pisync enroll --moved. "
        "If it is a copy: sudo pisync enroll URL --code CODE --new-device",
    ),
    "waiting": ("An enrollment file waits for the receiver.", "Nothing, if this place has no internet"),
    "refused": ("The receiver refused the enrollment file's code.", "Ask an administrator for another file"),
    "invalid": ("The enrollment file cannot be used.", "Correct it as named below, then: sudo pisync enroll-file FILE"),
}
"""What to say, and to do, while an enrollment is not settled."""
_RESTART: Final = f"sudo systemctl restart {UNIT}"


def unit_state() -> dict[str, str] | None:
    """Return what systemd says of the service; None where there is no systemd, or it does not answer."""
    if not Path("/run/systemd/system").is_dir():
        return None
    text = output_of("systemctl", "show", UNIT, f"--property={','.join(_PROPERTIES)}")
    return None if text is None else dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def check_service(subject: Subject, unit: Mapping[str, str] | None) -> Finding:
    """Judge whether the service runs and answers. `unit` is None where systemd does not run it."""
    live = subject.live
    seen = _unit_evidence(unit)
    if subject.silent:
        state = _process_state(subject.silent)
        return bad(
            "service",
            f"The service runs but does not answer{': ' + state if state else ''}. Apps cannot record meanwhile; "
            "nothing is lost.",
            subject.silent.partition(" runs but ")[0],
            *seen,
            advice=f"If it hangs for long, {subject.restart}   If that does not help, restart the device.",
            fix="restart-service" if subject.system else None,
        )
    if subject.barred:
        if unit is not None and unit.get("ActiveState") == "active":
            return ok("service", "systemd says that it is active; this user may not ask it", *seen)
        return skipped("service", "this user may not ask it: sudo pisync doctor", *seen)
    if live is None or live.get("kind") != "service":
        return _stopped(subject, unit, seen)
    evidence = (f"process {live.get('pid')}, version {live.get('version')}", *seen)
    if live.get("version") != __version__:
        return warn(
            "service",
            f"The service still runs version {live.get('version')}; version {__version__} is installed.",
            *evidence,
            advice=f"{_RESTART}   Nothing is lost.",
            fix="restart-service" if subject.system else None,
        )
    return ok("service", f"running (process {live.get('pid')}, version {live.get('version')})", *seen)


def _stopped(subject: Subject, unit: Mapping[str, str] | None, seen: tuple[str, ...]) -> Finding:
    if not subject.system:
        return warn(
            "service",
            "The service does not run. Apps of this user record without it; nothing is delivered on its own.",
            *seen,
            advice="Start it with `pisync run`, or deliver now with `pisync sync`.",
        )
    if unit is not None and unit.get("LoadState") == "not-found":
        return bad(
            "service",
            "The service is not installed, though its folder is here.",
            *seen,
            advice="Install the package pisync-agent again; the folder and what is in it are kept.",
        )
    state = (unit or {}).get("UnitFileState")
    if state == "masked":
        return bad(
            "service",
            "The service does not run: an administrator has blocked it (masked). Nothing is delivered.",
            *seen,
            advice=f"If it should run here: sudo systemctl unmask {UNIT}, then: sudo systemctl enable --now {UNIT}",
        )
    why = " It is switched off." if state == "disabled" else ""
    start = f"sudo systemctl {'enable --now' if why else 'start'} {UNIT}"
    return bad(
        "service",
        f"The service does not run.{why} Apps of other users cannot record, and nothing is delivered.",
        *seen,
        advice=f"{start}   If it ends again: journalctl -u {UNIT} -n 20",
        fix="start-service",
    )


def _unit_evidence(unit: Mapping[str, str] | None) -> tuple[str, ...]:
    if unit is None:
        return ()
    words = [f"{unit.get('ActiveState')} ({unit.get('SubState')})", unit.get("UnitFileState", "")]
    if unit.get("Result") not in (None, "", "success"):
        words.append(f"ended by {unit['Result']}")
    if unit.get("NRestarts", "0") != "0":
        words.append(f"restarted {unit['NRestarts']} times")
    return (f"systemd: {', '.join(filter(None, words))}", *filter(None, [unit.get("StatusText")]))


def _process_state(text: str) -> str:
    """Say what the silent process does, as the kernel shows it."""
    if not (found := _PID.search(text)):
        return ""
    with contextlib.suppress(OSError, IndexError):
        return _STATES.get(Path(f"/proc/{found[1]}/stat").read_text().rpartition(")")[2].split()[0], "")
    return ""


def check_socket(subject: Subject) -> Finding:
    """Judge the socket through which apps record."""
    path = files.socket(subject.home)
    if subject.barred:
        return warn(
            "socket",
            "This user may not use the service, so apps of this user cannot record.",
            subject.barred,
            advice=f"sudo adduser {user_name(os.geteuid())} pisync   then sign in again; or: sudo pisync doctor",
        )
    try:
        found = path.stat()
    except FileNotFoundError:
        return skipped("socket", "there is none while the service does not run")
    except OSError as error:
        return skipped("socket", f"{path}: {error.strerror}")
    about = f"{path} belongs to {user_name(found.st_uid)}, rights {stat.S_IMODE(found.st_mode):04o}"
    if not stat.S_ISSOCK(found.st_mode):
        return bad(
            "socket",
            f"{path} is not a socket: apps cannot reach the service.",
            about,
            advice=f"Move it away, then: {_RESTART}",
        )
    if subject.live is None:
        return skipped("socket", "the service does not answer, see above", about)
    if subject.system and stat.S_IMODE(found.st_mode) & 0o060 != 0o060:
        return bad(
            "socket",
            "Apps of other users cannot record: the socket is not open to its group.",
            about,
            advice=f"sudo chmod 0660 {path}",
            fix="modes",
        )
    return ok("socket", about)


def _enrollment(subject: Subject) -> EnrollmentState:
    """Return what the service says of it, else what the files say."""
    said = (subject.live or {}).get("enrollment")
    return EnrollmentState(**said) if said else state_of(subject.home, read_machine())


def check_enrollment(subject: Subject) -> Finding:
    """Judge whether the device has an identity, and whether the service uses it."""
    stands = _enrollment(subject)
    if stands.kind in _UNSETTLED:
        summary, advice = _UNSETTLED[stands.kind]
        return bad("enrollment", summary, stands.detail, advice=advice)
    identity, shown = subject.identity, subject.state
    device_id = identity.device_id if identity is not None else shown and shown["device_id"]
    if not device_id:
        if subject.identity_fault and os.access(identities.path(subject.home), os.R_OK):
            return bad("enrollment", "The device's identity cannot be used.", subject.identity_fault, advice=_ENROLL)
        if subject.identity_fault and shown is None:
            return skipped("enrollment", "this user may not read the identity: sudo pisync doctor")
        return bad(
            "enrollment",
            "This device is not enrolled: it records, and nothing can be delivered yet.",
            advice=_ENROLL,
        )
    if identity is not None and (subject.live or {}).get("enrolled") is False:
        return bad(
            "enrollment",
            f"The device is enrolled as {device_id}, and the service has not noticed.",
            advice=f"sudo systemctl reload {UNIT}",
            fix="reload",
        )
    return ok("enrollment", f"enrolled as {device_id} at {subject.url}")


_ENROLL: Final = "Ask an administrator for a code, then: sudo pisync enroll URL --code CODE"


def last_failure(subject: Subject) -> Mapping[str, Any]:
    """Return how the service's last sync run failed; empty if it did not, or it is unknown."""
    run = (subject.state or {}).get("last_run")
    failure = run.get("failure") if isinstance(run, Mapping) else None
    return failure if isinstance(failure, Mapping) else {}
