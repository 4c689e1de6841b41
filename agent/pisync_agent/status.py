"""`pisync status`: everything a technician asks first, at once, also while nothing else works.

It reads the outbox itself and asks the service, if one runs, for what only that knows. Nothing here needs the network.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pisync_agent.errors import StoreUnusable
from pisync_agent.home import quick_home
from pisync_agent.words import count, moment, size, span, waiting

LAST_RUN: Final = "last_run"
"""The note in the outbox under which a sync run leaves what came of it (see `runner`)."""

_EMPTY: Final[Mapping[str, Any]] = {
    "stream": None,
    "last_seq": 0,
    "delivered": 0,
    "watermark": 0,
    "waiting": 0,
    "dead": 0,
    "kept_from": 1,
    "bytes_used": 0,
    "salvaged": [],
    "reports_waiting": 0,
    "notes": {},
}


def status(arguments: argparse.Namespace) -> int:
    """Print the status; the exit code says whether all is well."""
    home = quick_home(arguments.home, arguments.config, os.environ) or _settled_home(arguments)
    found = collect(home)
    print(json.dumps(found) if arguments.json else text(found))
    return verdict(found)


def collect(home: Path) -> dict[str, Any]:
    """All that is known, as `status --json` prints it. Raises StoreUnusable."""
    outbox = _outbox(home)
    identity = _identity(home)
    live = _live(home)
    notes = outbox.pop("notes")
    last_run = json.loads(notes[LAST_RUN]) if LAST_RUN in notes else None
    if last_run is not None:
        last_run["ago_s"] = max(0.0, round(time.time() - last_run["at_ms"] / 1000, 1))
    return {
        "device_id": identity.get("device_id"),
        "url": identity.get("url"),
        "enrolled": bool(identity),
        **outbox,
        "service": _kind(live) == "service",
        "service_pid": live.get("pid") if live else None,
        "syncing": bool(live and live.get("running")),
        "last_run": last_run,
        "next_run_in_s": live.get("next_run_in_s") if live else None,
        "next_run_why": live.get("next_run_why") if live else None,
        "last_error": live.get("last_error") if live else None,
        "clock": {"now": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "synced": _synced()},
        "disk": {"free_bytes": _free(home), "outbox_bytes": outbox["bytes_used"]},
        "link": _link(identity.get("url")),
        "home": str(home),
    }


def verdict(found: Mapping[str, Any]) -> int:
    """0 nothing waits, 1 something does or was rejected, 3 or 4 where the last run says why it still does."""
    if not found["enrolled"]:
        return 4
    if not (found["waiting"] or found["dead"]):
        return 0
    failure = (found["last_run"] or {}).get("failure") or {}
    return {"refused": 4, "unreachable": 3}.get(str(failure.get("code")), 1) if found["waiting"] else 1


def text(found: Mapping[str, Any]) -> str:
    """For people in a hurry: the answer first, then one line a subject."""
    rows = [
        ("device", _device(found)),
        ("waiting", _waiting(found)),
        ("rejected", f"{count(found['dead'], 'event')}: see `pisync queue dead`" if found["dead"] else ""),
        ("last run", _last_run(found["last_run"])),
        ("next run", _next_run(found)),
        ("service", _service(found)),
        ("link", {True: "there is one", False: "none: no way out of this device", None: ""}[found["link"]]),
        ("clock", _clock(found["clock"])),
        ("disk", f"{size(found['disk']['outbox_bytes'])} in the outbox, {size(found['disk']['free_bytes'])} free"),
        *(("salvaged", _salvaged(each)) for each in found["salvaged"]),
        ("home", found["home"]),
    ]
    return "\n".join(f"{name:<10}{value}" for name, value in rows if value)


# What is collected


def _settled_home(arguments: argparse.Namespace) -> Path:
    from pisync_agent import config

    return config.settings_from(arguments, os.environ)[config.HOME]


def _outbox(home: Path) -> dict[str, Any]:
    database = home / "outbox.db"
    try:
        if not database.stat().st_size:
            return dict(_EMPTY)
    except (FileNotFoundError, NotADirectoryError):
        return dict(_EMPTY)
    except PermissionError as error:
        raise _not_yours(home) from error
    if not os.access(database, os.R_OK):
        raise _not_yours(home)
    from pisync_agent.outbox.glance import glance

    return glance(str(database))


def _not_yours(home: Path) -> StoreUnusable:
    return StoreUnusable(
        f"{home} is not yours to read. Run this as the agent's user (sudo -u pisync …), or join its group"
    )


def _identity(home: Path) -> dict[str, Any]:
    """Device and receiver; an empty object where the device is not enrolled, or it is not ours to know."""
    try:
        known = json.loads((home / "identity.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _live(home: Path) -> dict[str, Any] | None:
    socket = home / "agent.sock"
    if not socket.exists():
        return None
    from pisync_agent.local import live_status

    try:
        return live_status(socket)
    except OSError:
        return {"kind": "silent"}


def _kind(live: Mapping[str, Any] | None) -> str:
    return "" if live is None else str(live.get("kind"))


def _synced() -> bool:
    from pisync_agent.adjtimex import kernel_synced

    return kernel_synced()()


def _free(home: Path) -> int:
    folder = home
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _link(url: str | None) -> bool | None:
    if not url:
        return None
    from pisync_agent.connectivity import has_link

    return has_link(url.partition("://")[2].partition("/")[0])


# How it is said


def _device(found: Mapping[str, Any]) -> str:
    if not found["enrolled"]:
        return "not enrolled: recording works, delivery needs `pisync enroll URL --code CODE`"
    return f"{found['device_id']} at {found['url']}"


def _waiting(found: Mapping[str, Any]) -> str:
    if not found["last_seq"]:
        return "nothing: no event was ever recorded here"
    upto = f"1 to {found['delivered']:,} delivered" if found["delivered"] else "none delivered yet"
    return f"{waiting(found['waiting'])}; {upto} of {found['last_seq']:,} (stream {found['stream']})"


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
        return "one is under way"
    if found["next_run_in_s"] is None:
        return "" if not found["enrolled"] else "none by itself: no service runs; `pisync sync` delivers now"
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
    carried = f"{each['carried']:,} carried{damaged}"
    return f"{moment(each['at_ms'])}: {each['file']} was set aside ({each['reason']}); {carried}"
