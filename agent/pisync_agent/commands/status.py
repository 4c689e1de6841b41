"""`pisync status`: everything a technician asks first, also while nothing else works.

It reads the outbox itself, or asks the service where the file is the agent's alone, and asks the service, if it runs,
for what only the service knows. Nothing here needs the network, and no wait is longer than a few seconds.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pisync_agent.config as config
from pisync_agent.clock import kernel_sync_check
from pisync_agent.commands.command import Command, add_json
from pisync_agent.commands.formatting import count, moment, pending, size, span
from pisync_agent.commands.usage import DONE, PENDING, REFUSED, UNREACHABLE, UNUSABLE
from pisync_agent.enrollment.machine import read_machine
from pisync_agent.enrollment.state import state_of
from pisync_agent.errors import NotAnswering, StoreUnusable
from pisync_agent.outbox import disk, files
from pisync_agent.outbox.models import OutboxState
from pisync_agent.service import protocol, views
from pisync_agent.sync.connectivity import has_link

_NUMBERS: Final = (
    "last_seq", "delivered", "watermark", "waiting", "dead", "kept_from", "bytes_used", "sync_events_waiting",
)  # fmt: skip
"""What is null in the JSON where the outbox cannot be read."""


def status(arguments: argparse.Namespace) -> int:
    """Print the status; the exit code says whether all is well."""
    found = collect(config.settings_from(arguments)[config.HOME])
    print(json.dumps(found) if arguments.json else text(found))
    return verdict(found)


def collect(home: Path) -> dict[str, Any]:
    """Return everything known, as `status --json` prints it. Raises StoreUnusable if that is nothing."""
    live = _live(home)
    found = _outbox(home, live)
    state, last_run, url = found["outbox"], found["last_run"], found["url"]
    enrollment = live.get("enrollment") or asdict(state_of(home, read_machine()))
    if last_run is not None:
        last_run["ago_s"] = max(0.0, round(time.time() - last_run["at_ms"] / 1000, 1))
    return {
        "device_id": found["device_id"],
        "url": url,
        "enrolled": None if "fault" in found else found["device_id"] is not None and enrollment["kind"] != "moved",
        "enrollment": enrollment,
        **state,
        "stream": state["stream"] or None,
        "service": live.get("kind") == "service",
        "service_pid": live.get("pid"),
        "service_fault": live.get("silent"),
        "syncing": bool(live.get("running")),
        "last_run": last_run,
        "next_run_in_s": live.get("next_run_in_s"),
        "next_run_why": live.get("next_run_why"),
        "last_error": live.get("last_error"),
        "write_fault": live.get("write_fault"),
        "clock": {"now": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "synced": kernel_sync_check()()},
        "disk": _disk(home) | {"outbox_bytes": state["bytes_used"]},
        "outbox_fault": found.get("fault"),
        "link": url and has_link(urlsplit(url).hostname or ""),
        "home": str(home),
    }


def verdict(found: Mapping[str, Any]) -> int:
    """Return the exit code: whether anything is pending or rejected, and why it still is."""
    if found.get("outbox_fault"):
        return UNUSABLE
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
        ("enrollment", found["enrollment"]["detail"] if found["enrollment"]["kind"] != "none" else ""),
        ("pending", _pending(found)),
        ("rejected", f"{count(found['dead'], 'event')}: see `pisync queue dead`" if found["dead"] else ""),
        ("last run", "" if found["outbox_fault"] else _last_run(found["last_run"])),
        ("next run", _next_run(found)),
        ("service", _service(found)),
        ("recording", _recording(found)),
        ("link", {True: "available", False: "none: there is no route out of this device", None: ""}[found["link"]]),
        ("clock", _clock(found["clock"])),
        ("disk", _space(found["disk"])),
        *(("salvaged", _salvaged(each)) for each in found["salvaged"]),
        ("home", found["home"]),
    ]
    return "\n".join(f"{name:<11}{value}" for name, value in rows if value)


# What is collected


def _outbox(home: Path, live: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of the outbox; its fault, where only the service can say something."""
    try:
        with views.look(home) as view:
            return view.state()
    except StoreUnusable as error:
        if not live:
            raise
        return {
            "device_id": None,
            "url": None,
            "outbox": views.shown(OutboxState()) | dict.fromkeys(_NUMBERS),
            "last_run": None,
            "fault": str(error),
        }


def _live(home: Path) -> dict[str, Any]:
    """Return what the service says; nothing if none runs, `silent` if it does not answer."""
    try:
        return protocol.live_status(files.socket(home)) or {}
    except NotAnswering as error:
        return {"kind": "service", "silent": str(error)}
    except OSError:
        return {}


def _disk(home: Path) -> dict[str, Any]:
    folder = home
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return {"free_bytes": disk.free_bytes(folder), "read_only": bool(os.statvfs(folder).f_flag & os.ST_RDONLY)}


# How it is shown


def _device(found: Mapping[str, Any]) -> str:
    if found["outbox_fault"] or found["enrollment"]["kind"] not in ("none", "enrolled"):
        return ""  # "enrollment" says it
    if not found["enrolled"]:
        return "not enrolled: recording works, delivery needs `pisync enroll URL --code CODE`"
    return f"{found['device_id']} at {found['url']}"


def _pending(found: Mapping[str, Any]) -> str:
    if found["outbox_fault"]:
        return f"unknown: {'the service does not answer' if found['service_fault'] else found['outbox_fault']}"
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
    if found["service_fault"]:
        return "unknown: the service does not answer"
    if found["next_run_in_s"] is None:
        return "" if not found["enrolled"] else "not scheduled: no service runs; `pisync sync` delivers now"
    return f"in {span(found['next_run_in_s'])}: {found['next_run_why']}"


def _service(found: Mapping[str, Any]) -> str:
    if found["service_fault"]:
        return str(found["service_fault"])
    if found["service"]:
        return f"running (process {found['service_pid']})"
    if found["home"] == str(config.SYSTEM_HOME):
        return "not running: apps of other users cannot record until it runs: sudo systemctl start pisync-agent"
    return "not running: apps of this user record without it; `pisync run` starts it"


def _recording(found: Mapping[str, Any]) -> str:
    fault = found["write_fault"]
    if fault is None:
        return "fails: the card's file system is read-only; `dmesg` shows why" if found["disk"]["read_only"] else ""
    return f"fails since {moment(fault['since_ms'])} ({count(fault['count'], 'failed commit')}): {fault['detail']}"


def _clock(clock: Mapping[str, Any]) -> str:
    return f"{clock['now']}, " + (
        "synchronised" if clock["synced"] else "not synchronised: times are corrected when events are delivered"
    )


def _space(disk: Mapping[str, Any]) -> str:
    outbox = "" if disk["outbox_bytes"] is None else f"{size(disk['outbox_bytes'])} in the outbox, "
    return f"{outbox}{size(disk['free_bytes'])} free"


def _salvaged(each: Mapping[str, Any]) -> str:
    damaged = f", {each['damaged']:,} damaged" if each["damaged"] else ""
    events = f"{each['transferred']:,} events transferred{damaged}"
    return f"{moment(each['at_ms'])}: {each['file']} was set aside ({each['reason']}); {events}"


STATUS: Final = Command(run=status, example="status", arguments=add_json)
