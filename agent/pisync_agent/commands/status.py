"""`pisync status`: everything a technician asks first, also while nothing else works.

It reads the outbox itself and asks the service, if it runs, for what only the service knows. Nothing here needs the
network.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pisync_agent.config as config
import pisync_agent.identity as identities
from pisync_agent.clock import kernel_sync_check
from pisync_agent.commands.formatting import count, moment, pending, size, span
from pisync_agent.commands.usage import DONE, PENDING, REFUSED, UNREACHABLE
from pisync_agent.errors import NotEnrolled, StoreUnusable
from pisync_agent.identity import Identity
from pisync_agent.outbox import disk, files
from pisync_agent.outbox.models import LAST_RUN, OutboxState
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.service import protocol
from pisync_agent.sync.connectivity import has_link


def status(arguments: argparse.Namespace) -> int:
    """Print the status; the exit code says whether all is well."""
    found = collect(config.settings_from(arguments)[config.HOME])
    print(json.dumps(found) if arguments.json else text(found))
    return verdict(found)


def collect(home: Path) -> dict[str, Any]:
    """Return everything known, as `status --json` prints it. Raises StoreUnusable."""
    state, note = _outbox(home)
    identity = _identity(home)
    live = _live(home)
    last_run = json.loads(note) if note else None
    if last_run is not None:
        last_run["ago_s"] = max(0.0, round(time.time() - last_run["at_ms"] / 1000, 1))
    return {
        "device_id": identity and identity.device_id,
        "url": identity and identity.url,
        "enrolled": identity is not None,
        **asdict(state),
        "stream": state.stream or None,
        "service": live.get("kind") == "service",
        "service_pid": live.get("pid"),
        "syncing": bool(live.get("running")),
        "last_run": last_run,
        "next_run_in_s": live.get("next_run_in_s"),
        "next_run_why": live.get("next_run_why"),
        "last_error": live.get("last_error"),
        "clock": {"now": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "synced": kernel_sync_check()()},
        "disk": {"free_bytes": _free(home), "outbox_bytes": state.bytes_used},
        "link": identity and has_link(identity.host),
        "home": str(home),
    }


def verdict(found: Mapping[str, Any]) -> int:
    """Return the exit code: whether anything is pending or rejected, and why it still is."""
    if not found["enrolled"]:
        return REFUSED
    if not (found["waiting"] or found["dead"]):
        return DONE
    failure = (found["last_run"] or {}).get("failure") or {}
    code = {"refused": REFUSED, "unreachable": UNREACHABLE}.get(str(failure.get("code")), PENDING)
    return code if found["waiting"] else PENDING


def text(found: Mapping[str, Any]) -> str:
    """Return it for people in a hurry: the answer first, then one line a subject."""
    rows = [
        ("device", _device(found)),
        ("pending", _pending(found)),
        ("rejected", f"{count(found['dead'], 'event')}: see `pisync queue dead`" if found["dead"] else ""),
        ("last run", _last_run(found["last_run"])),
        ("next run", _next_run(found)),
        ("service", _service(found)),
        ("link", {True: "available", False: "none: there is no route out of this device", None: ""}[found["link"]]),
        ("clock", _clock(found["clock"])),
        ("disk", f"{size(found['disk']['outbox_bytes'])} in the outbox, {size(found['disk']['free_bytes'])} free"),
        *(("salvaged", _salvaged(each)) for each in found["salvaged"]),
        ("home", found["home"]),
    ]
    return "\n".join(f"{name:<10}{value}" for name, value in rows if value)


# What is collected


def _outbox(home: Path) -> tuple[OutboxState, str | None]:
    """Return the outbox's state and its note about the last run."""
    database = files.database(home)
    try:
        if not database.stat().st_size:
            return OutboxState(), None
    except (FileNotFoundError, NotADirectoryError):
        return OutboxState(), None
    except PermissionError as error:
        raise _not_readable(home) from error
    if not os.access(database, os.R_OK):
        raise _not_readable(home)
    with OutboxReader(home) as reader:
        return reader.state(), reader.note(LAST_RUN)


def _not_readable(home: Path) -> StoreUnusable:
    return StoreUnusable(
        f"{home} cannot be read by this user. Run this as the agent's user (sudo -u pisync …), or join its group"
    )


def _identity(home: Path) -> Identity | None:
    """Return the identity; None if there is none, or this user cannot read it."""
    try:
        return identities.load(home)
    except NotEnrolled:
        return None


def _live(home: Path) -> dict[str, Any]:
    """Return what the service says; an empty object if none runs."""
    try:
        return protocol.live_status(files.socket(home)) or {}
    except OSError:
        return {"kind": "silent"}


def _free(home: Path) -> int:
    folder = home
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return disk.free_bytes(folder)


# How it is shown


def _device(found: Mapping[str, Any]) -> str:
    if not found["enrolled"]:
        return "not enrolled: recording works, delivery needs `pisync enroll URL --code CODE`"
    return f"{found['device_id']} at {found['url']}"


def _pending(found: Mapping[str, Any]) -> str:
    if not found["last_seq"]:
        return "nothing: no event was ever recorded here"
    delivered = f"1 to {found['delivered']:,} delivered" if found["delivered"] else "none delivered yet"
    return f"{pending(found['waiting'])}; {delivered} of {found['last_seq']:,} (stream {found['stream']})"


def _last_run(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return "never"
    when = f"{moment(run['at_ms'])} ({span(run['ago_s'])} ago)"
    failure = run.get("failure")
    if failure:
        return f"{when}: failed ({failure.get('kind') or failure['code']}): {failure['detail']}"
    rejected = f", {run['rejected']:,} rejected" if run["rejected"] else ""
    return f"{when}: delivered {count(run['delivered'], 'event')}{rejected}"


def _next_run(found: Mapping[str, Any]) -> str:
    if found["syncing"]:
        return "in progress"
    if found["next_run_in_s"] is None:
        return "" if not found["enrolled"] else "not scheduled: no service runs; `pisync sync` delivers now"
    return f"in {span(found['next_run_in_s'])}: {found['next_run_why']}"


def _service(found: Mapping[str, Any]) -> str:
    if found["service"]:
        return f"running (process {found['service_pid']})"
    return "not running: apps record without it; start it with `pisync run`, or systemctl start pisync-agent"


def _clock(clock: Mapping[str, Any]) -> str:
    return f"{clock['now']}, " + (
        "synchronised" if clock["synced"] else "not synchronised: times are corrected when events are delivered"
    )


def _salvaged(each: Mapping[str, Any]) -> str:
    damaged = f", {each['damaged']:,} damaged" if each["damaged"] else ""
    events = f"{each['transferred']:,} events transferred{damaged}"
    return f"{moment(each['at_ms'])}: {each['file']} was set aside ({each['reason']}); {events}"
