"""`pisync status`: everything a technician asks first, also while nothing else works.

It asks the service, and reads the outbox itself where no service answers. Nothing here needs the network, and no wait
is longer than a few seconds. What a running service knows is not looked up again: that would load SQLite and more, and
take twice as long.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pisync_agent.config as config
from pisync_agent.commands.command import Command, add_json
from pisync_agent.commands.status_text import text
from pisync_agent.commands.usage import DONE, PENDING, REFUSED, UNREACHABLE, UNUSABLE
from pisync_agent.errors import AgentError, NotAnswering, StoreUnusable
from pisync_agent.outbox import files, space
from pisync_agent.service import protocol, spool_folder

NOT_PERMITTED: Final = "not_permitted"
"""`Fault.NOT_PERMITTED`, without loading SQLite."""


def status(arguments: argparse.Namespace) -> int:
    """Print the status; the exit code says whether all is well."""
    found = collect(config.settings_from(arguments)[config.HOME])
    fault = found["outbox_fault"]
    if fault and fault["fault"] == NOT_PERMITTED and not (found["service"] or arguments.json):
        raise StoreUnusable(fault["detail"])  # nothing else is known either
    print(json.dumps(found) if arguments.json else text(found))
    return verdict(found)


def collect(home: Path) -> dict[str, Any]:
    """Return everything known, as `status --json` prints it."""
    live = _live(home)
    found = _outbox(home, live)
    disk = _disk(home)
    state, last_run, url = found["outbox"], found["last_run"], found["url"]
    enrollment = live.get("enrollment") or _enrollment(home)
    if last_run is not None:
        last_run["ago_s"] = max(0.0, round(time.time() - last_run["at_ms"] / 1000, 1))
    return {
        "device_id": found["device_id"],
        "url": url,
        "enrolled": None if found["fault"] else found["device_id"] is not None and enrollment["kind"] != "moved",
        "enrollment": enrollment,
        **state,
        "stream": state["stream"] or None,
        "service": None if live.get("barred") else live.get("kind") == "service",
        "service_pid": live.get("pid"),
        "service_fault": live.get("silent"),
        "syncing": bool(live.get("running")),
        "last_run": last_run,
        "next_run_in_s": live.get("next_run_in_s"),
        "next_run_why": live.get("next_run_why"),
        "last_error": live.get("last_error"),
        "write_fault": live.get("write_fault") or found["write_fault"] or _read_only(disk),
        "clock": {"now": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "synced": _synced(live)},
        "disk": disk | {"outbox_bytes": state["bytes_used"]},
        "outbox_fault": found["fault"],
        "spool": _spool(home),
        "link": url and _link(live, url),
        "home": str(home),
    }


def verdict(found: Mapping[str, Any]) -> int:
    """Return the exit code: whether anything is pending or rejected, and why it still is."""
    if found["outbox_fault"] or found["write_fault"]:
        return UNUSABLE
    failure = ((found["last_run"] or {}).get("failure") or {}).get("code")
    if not found["enrolled"] or failure == "refused":
        return REFUSED
    if found["waiting"] and failure == "unreachable":
        return UNREACHABLE
    left = found["spool"] and (found["spool"]["left"] or found["spool"]["refused"])
    return PENDING if found["waiting"] or found["dead"] or left else DONE


# What is collected


def _outbox(home: Path, live: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of the outbox, and its faults."""
    if live and not live.get("silent"):
        with suppress(AgentError, OSError):
            if (state := protocol.read(files.socket(home), "state", timeout=protocol.STATUS_S)) is not None:
                return state | {"fault": None, "write_fault": None}
    from pisync_agent.outbox.models import OutboxState
    from pisync_agent.service import views

    fault, write_fault = (None, None) if live else _faults(home)
    try:
        with views.look(home) as view:
            known = view.state()
    except StoreUnusable as error:
        unknown = dict.fromkeys(views.shown(OutboxState())) | {"salvaged": ()}
        known = {"device_id": None, "url": None, "last_run": None, "outbox": unknown}
        fault = fault or _fault(error.fault, str(error))
    return known | {"fault": fault, "write_fault": write_fault}


def _faults(home: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return why the outbox of no running service cannot be read, and why it cannot be written; None if it can."""
    if not os.access(files.database(home), os.R_OK):
        return None, None  # there is none, or it is not this user's to examine
    from pisync_agent.outbox.condition import inspect

    found = inspect(home)
    if found.fault is None:
        return None, None
    fault = _fault(found.fault, found.detail)
    if not found.reading:
        return fault, None
    return None, None if found.fault == NOT_PERMITTED else fault  # this user may read it, and not write


def _fault(name: str | None, detail: str) -> dict[str, Any]:
    return {"fault": name or "other", "detail": detail}


def _read_only(disk: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fault of a card that the service has not tried to write yet."""
    if not disk["read_only"]:
        return None
    return _fault("read_only", "the card's file system is read-only; `dmesg` shows why")


def _live(home: Path) -> dict[str, Any]:
    """Return what the service says; nothing if none runs, `silent` if it does not answer, `barred` if this user may
    not ask it."""
    try:
        return protocol.live_status(files.socket(home)) or {}
    except NotAnswering as error:
        return {"kind": "service", "silent": str(error)}
    except PermissionError:
        return {"barred": True}
    except OSError:
        return {}


def _enrollment(home: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from pisync_agent.enrollment.machine import read_machine
    from pisync_agent.enrollment.state import state_of

    return asdict(state_of(home, read_machine()))


def _synced(live: Mapping[str, Any]) -> bool:
    if "clock_synced" in live:
        return live["clock_synced"] is True
    from pisync_agent.clock import kernel_sync_check

    return kernel_sync_check()()


def _link(live: Mapping[str, Any], url: str) -> bool:
    if "link" in live:
        return live["link"] is True
    from urllib.parse import urlsplit

    from pisync_agent.sync.connectivity import has_link

    return has_link(urlsplit(url).hostname or "")


def _spool(home: Path) -> dict[str, int] | None:
    found = spool_folder.counts(home)
    return None if found is None else found._asdict()


def _disk(home: Path) -> dict[str, Any]:
    folder = home
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return {"free_bytes": space.free_bytes(folder), "read_only": space.is_read_only(folder)}
    except OSError:
        return {"free_bytes": None, "read_only": False}


STATUS: Final = Command(
    run=status,
    example="status",
    arguments=add_json,
    more=(
        "The first line says whether this device is fine, or what to do. All times are this device's local time.\n"
        "It returns 4 if the receiver refused the device in the last run, even if nothing is pending, and 3 only if\n"
        "something is pending. Nothing is changed, and the network is not used."
    ),
)
