"""How `pisync status` shows what it found: the answer first, then one line a subject, for people in a hurry."""

import time
from collections.abc import Mapping
from typing import Any, Final

import pisync_agent.config as config
from pisync_agent.formatting import count, moment, paragraph, pending, row, size, span

_INDENT: Final = 11
_START: Final = "sudo systemctl start pisync-agent"


def text(found: Mapping[str, Any]) -> str:
    """Return it in lines that fit a terminal."""
    rows = [
        ("device", _device(found)),
        ("enrollment", found["enrollment"]["detail"] if found["enrollment"]["kind"] != "none" else ""),
        ("pending", _pending(found)),
        ("rejected", f"{count(found['dead'], 'event')}: see `pisync queue dead`" if found["dead"] else ""),
        ("spool", _spool(found["spool"])),
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
    lines = [row(name, value, _INDENT) for name, value in rows if value]
    return "\n".join([paragraph(headline(found)), "", *lines])


def headline(found: Mapping[str, Any]) -> str:
    """Return whether this device is fine; what to do if it is not."""
    trouble = _trouble(found)
    if trouble:
        return f"Needs help: {trouble}"
    if not found["enrolled"]:
        return f"This device enrolls as soon as it reaches the receiver{_pause(found)}. Nothing to do."
    if found["waiting"]:
        return _why_pending(found)
    return f"This device is fine: {'everything is delivered' if found['last_seq'] else 'nothing was recorded yet'}."


def _trouble(found: Mapping[str, Any]) -> str:
    """Return what a person has to do something about, the most urgent first; nothing if all is well, or will be."""
    if found["service_fault"]:
        return "the service runs but does not answer. See the line `service`."
    if found["outbox_fault"]:
        return "the outbox cannot be read. See the line `pending`."
    if found["write_fault"]:
        return "apps cannot record. See the line `recording`."
    left = _pause(found)
    kind = found["enrollment"]["kind"]
    if kind == "moved":
        return f"this card was enrolled on another machine{left}. See the line `enrollment`."
    if kind in ("refused", "invalid"):
        return f"the enrollment file does not work{left}. See the line `enrollment`."
    if not found["enrolled"] and kind != "waiting":
        return f"this device is not enrolled{left}. Ask an administrator for a code."
    if _failure(found).get("code") == "refused":
        return f"the receiver refused this device{left}. See the line `last run`."
    if found["home"] == str(config.SYSTEM_HOME) and not (found["service"] or found["syncing"]):
        return f"the service does not run{left}: {_START}"
    if found["dead"]:
        return f"{count(found['dead'], 'event')} rejected, and kept{left}. See `pisync queue dead`."
    if _spool(found["spool"]):
        return f"files of apps were not recorded{left}. See the line `spool`."
    return ""


def _pause(found: Mapping[str, Any]) -> str:
    return f"; {_waits(found)}" if found["waiting"] else ""


def _why_pending(found: Mapping[str, Any]) -> str:
    waits, failure = _waits(found), _failure(found)
    if found["syncing"]:
        return f"{waits}: being delivered now."
    if found["link"] is False:
        return f"{waits}: this device has no link. Nothing to do: delivery starts when there is one."
    if found["next_run_in_s"] is None:
        return f"{waits}: no service runs. `pisync sync` delivers now."
    soon = f"the next run is in {span(found['next_run_in_s'])}"
    if failure:
        return f"{waits}: the last run failed ({failure['kind'] or failure['code']}). Nothing to do yet: {soon}."
    return f"{waits}. Nothing to do: {soon}."


def _waits(found: Mapping[str, Any]) -> str:
    return f"{count(found['waiting'], 'event')} {'waits' if found['waiting'] == 1 else 'wait'}"


def _failure(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return (found["last_run"] or {}).get("failure") or {}


# The lines


def _device(found: Mapping[str, Any]) -> str:
    if found["outbox_fault"] or found["enrollment"]["kind"] not in ("none", "enrolled"):
        return ""  # `enrollment` says it
    if not found["enrolled"]:
        return "not enrolled: recording works, delivery needs `pisync enroll URL --code CODE`"
    return f"{found['device_id']} at {found['url']}"


def _pending(found: Mapping[str, Any]) -> str:
    if found["outbox_fault"]:
        why = "the service does not answer" if found["service_fault"] else found["outbox_fault"]["detail"]
        return f"unknown: {why}"
    if not found["last_seq"]:
        return "nothing: no event was ever recorded here"
    delivered = f"1 to {found['delivered']:,} delivered" if found["delivered"] else "none delivered yet"
    return f"{pending(found['waiting'])}; {delivered} of {found['last_seq']:,} (stream {found['stream']})"


def _spool(spool: Mapping[str, int] | None) -> str:
    """Return what the spool folder holds that the service did not take; nothing if it took all, or this is unknown."""
    if not spool or not (spool["left"] or spool["refused"]):
        return ""
    left = f"{count(spool['left'], 'file')} not recorded; `pisync logs` shows why" if spool["left"] else ""
    refused = f"{count(spool['refused'], 'file')} of refused lines (.refused): delete them when their app is corrected"
    return "; ".join(filter(None, (left, refused if spool["refused"] else "")))


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
        return f"not running: apps of other users cannot record until it runs: {_START}"
    return "not running: apps of this user record without it; `pisync run` starts it"


def _recording(found: Mapping[str, Any]) -> str:
    fault = found["write_fault"]
    if fault is None:
        return ""
    since = f" since {moment(fault['since_ms'])} ({count(fault['count'], 'failed commit')})" if "count" in fault else ""
    return f"fails{since}: {fault['detail']}"


def _clock(clock: Mapping[str, Any]) -> str:
    zone = time.strftime("%z")
    return f"{moment(time.time_ns() // 1_000_000)} (UTC{zone[:3]}:{zone[3:]}), " + (
        "synchronised" if clock["synced"] else "not synchronised: times are corrected when events are delivered"
    )


def _space(disk: Mapping[str, Any]) -> str:
    outbox = "" if disk["outbox_bytes"] is None else f"{size(disk['outbox_bytes'])} in the outbox, "
    return f"{outbox}{'unknown' if disk['free_bytes'] is None else size(disk['free_bytes'])} free"


def _salvaged(each: Mapping[str, Any]) -> str:
    damaged = f", {each['damaged']:,} damaged" if each["damaged"] else ""
    events = f"{each['transferred']:,} events transferred{damaged}"
    return f"{moment(each['at_ms'])}: {each['file']} was set aside ({each['reason']}); {events}"
