"""`pisync sync`: one sync run now, through the service or in this process."""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import pisync_agent.config as config
from pisync_agent.commands.command import DELIVERY, Command, add_json
from pisync_agent.commands.usage import DONE, PENDING, REFUSED, UNREACHABLE, WrongUsage, settings_of
from pisync_agent.formatting import count, pending, size, span
from pisync_agent.outbox import files
from pisync_agent.service import protocol
from pisync_common.errors import LockHeld
from pisync_common.settings import Settings, some_time

START_S: Final = 15.0
"""How long to wait for a service that has the lock and no socket yet, or is about to give both up."""

_CLEAR: Final = "\r\x1b[K"


def sync(arguments: argparse.Namespace) -> int:
    import logging  # slow to import

    settings = settings_of(arguments)
    # It announces the next attempt, but this process ends.
    logging.getLogger("pisync_agent.service.scheduler").setLevel(logging.ERROR)
    meter = Meter(sys.stderr)
    max_s = _max_time(arguments.max_time)
    try:
        result = _sync(settings, meter, max_s)
    except KeyboardInterrupt:
        meter.end()
        print("pisync: stopped; everything is kept, and what was delivered stays delivered", file=sys.stderr)
        raise
    finally:
        meter.end()
    print(json.dumps(result) if arguments.json else summary(result))
    return _verdict(result, sys.stderr)


def _sync(settings: Settings, meter: "Meter", max_s: float) -> dict[str, Any]:
    """Make one sync run, in the service or in this process; return its result as JSON."""
    home, deadline = settings[config.HOME], time.monotonic() + START_S
    end = time.monotonic() + max_s
    while True:
        began = time.monotonic()
        try:
            if (result := _through_service(home, meter, began, end)) is not None:
                return result
            from pisync_agent.service.service import Service  # httpx is imported only where it is needed

            return Service(home, settings=settings).sync_once(meter.show, max_s=max_s)
        except (LockHeld, ConnectionError, protocol.Stopped):
            now = time.monotonic()
            if now - began > START_S:  # it was working, and stopped before it was done
                deadline = now + START_S
            if now > deadline:
                raise
            time.sleep(0.05)  # its socket opens, or its lock is freed, in a moment; neither can be waited for


class _TimeIsUp(Exception):
    def __init__(self, progress: Mapping[str, Any]) -> None:
        self.progress = progress


def _through_service(home: Path, meter: "Meter", began: float, end: float) -> dict[str, Any] | None:
    """Have the service make a sync run; return its result, or at `end` how far it is. None if no service runs."""

    def show(progress: Mapping[str, Any]) -> None:
        meter.show(progress)
        if time.monotonic() >= end:
            raise _TimeIsUp(progress)

    try:
        return protocol.sync(files.socket(home), show)
    except _TimeIsUp as up:
        progress = up.progress
        state = protocol.read(files.socket(home), "state")
    if state is None:
        raise protocol.Stopped("the service has stopped; everything is kept")
    return {
        "delivered": progress["events"],
        "duplicates": 0,
        "rejected": 0,
        "waiting": state["outbox"]["waiting"],
        "errors": {},
        "seconds": round(time.monotonic() - began, 3),
        "bytes_sent": progress["bytes"],
        "speed_mbit": progress["speed_mbit"],
        "offline": False,
        "failure": None,
    }


def _max_time(given: str | None) -> float:
    """Return the seconds of `--max-time`. Raises WrongUsage."""
    if given is None:
        return math.inf
    try:
        return some_time(given)
    except ValueError as error:
        raise WrongUsage(f"--max-time {given}: {error}") from error


def _verdict(result: Mapping[str, Any], err: TextIO) -> int:
    """Return the exit code of a sync run, and print to `err` why it is not 0."""
    failure = result.get("failure")
    if failure:
        kind = failure.get("kind") or failure["code"]
        print(f"pisync: the sync run failed ({kind}): {failure['detail']}", file=err)
        return {"unreachable": UNREACHABLE, "refused": REFUSED}.get(failure["code"], PENDING)
    if result.get("offline"):
        print("pisync: this device has no link; everything is kept, and delivered when there is one", file=err)
        return UNREACHABLE
    return PENDING if result["waiting"] or result["rejected"] else DONE


def summary(result: Mapping[str, Any]) -> str:
    """Describe one sync run in a few words, from its JSON."""
    known = f" ({result['duplicates']:,} already known)" if result["duplicates"] else ""
    speed = f", {result['speed_mbit']:.2g} Mbit/s" if result.get("speed_mbit") else ""
    parts = [
        f"delivered {count(result['delivered'], 'event')}{known} in {result['seconds']:.1f} s"
        f" ({size(result['bytes_sent'])} sent{speed})"
    ]
    if result["rejected"]:
        parts.append(f"{count(result['rejected'], 'event')} rejected and kept: see `pisync queue dead`")
    parts.append(pending(result["waiting"]))
    return "; ".join(parts)


class Meter:
    """A live line on a terminal; elsewhere a line when the step changes. Takes progress as the socket carries it."""

    def __init__(self, stream: TextIO, *, live: bool | None = None) -> None:
        self._stream = stream
        self._live = stream.isatty() if live is None else live
        self._step = ""
        self._shown = False

    def show(self, progress: Mapping[str, Any]) -> None:
        if self._live:
            self._write(_CLEAR + progress_line(progress))
            self._shown = True
        elif progress["step"] != self._step:
            self._write(progress_line(progress) + "\n")
        self._step = str(progress["step"])

    def end(self) -> None:
        """Clear the live line."""
        if self._shown:
            self._write(_CLEAR)
            self._shown = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def progress_line(progress: Mapping[str, Any]) -> str:
    """Return `sending: 1,200 of 5,000 events, 64.0 KiB, 1.2 Mbit/s, 40 s left`."""
    parts = []
    if progress.get("of"):
        parts.append(f"{progress['events']:,} of {count(progress['of'], 'event')}")
    if progress.get("bytes"):
        parts.append(size(progress["bytes"]))
    if progress.get("speed_mbit"):
        parts.append(f"{progress['speed_mbit']:.2g} Mbit/s")
    if progress.get("seconds_left") is not None:
        parts.append(f"{span(progress['seconds_left'])} left")
    return ": ".join(filter(None, (str(progress["step"]), ", ".join(parts))))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-time", metavar="TIME", help="end after the batch in flight once this time is over, such as 10m"
    )
    add_json(parser)


SYNC: Final = Command(
    run=sync,
    example="sync --max-time 10m",
    arguments=_arguments,
    settings=DELIVERY,
    more=(
        "Uses the service if it runs. A second `pisync sync` joins the first. Ctrl-C, at any moment, and the end of\n"
        "--max-time keep what is pending, and what was delivered stays delivered; a service that runs goes on."
    ),
)
