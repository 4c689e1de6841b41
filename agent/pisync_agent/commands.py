"""What the commands do, from the parsed command line to what they print. (`queue` and `status` have their own modules.)

Each returns its exit code. Raises SettingError or WrongUsage for a command line that cannot be carried out, any other
PiSyncError for a command that was not done; `cli` prints them.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from pisync_agent import config, local, ndjson, progress
from pisync_agent.cli import DONE, REFUSED, UNREACHABLE, WAITS, WrongUsage
from pisync_agent.outbox import files
from pisync_agent.recorder import Recorder
from pisync_common.errors import LockHeld
from pisync_common.settings import Settings

if TYPE_CHECKING:
    from pisync_agent.identity import Identity

START_S: Final = 15.0
"""How long `pisync sync` waits for a service that has the lock and no socket yet, or is about to give both up."""


def run(arguments: argparse.Namespace) -> int:
    from pisync_agent import logs
    from pisync_agent.service import Service

    settings = settings_of(arguments)
    logs.configure(settings[config.LOG_LEVEL])
    Service(settings[config.HOME], settings=settings).run_forever()
    return DONE


def record(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    with Recorder(settings[config.HOME], limits=config.limits(settings)) as recorder:
        if "-" in (arguments.type, arguments.data):
            ndjson.record(recorder, _line_reader(arguments), source=sys.stdin.fileno(), out=sys.stdout)
            return DONE
        seq = recorder.record(
            arguments.type,
            learner_id=arguments.learner,
            object_id=arguments.object,
            data=None if arguments.data is None else _data(arguments.data),
            id=arguments.id,
        )
    print(seq)
    return DONE


def sync(arguments: argparse.Namespace) -> int:
    import logging

    settings = settings_of(arguments)
    logging.getLogger("pisync_agent.syncer").setLevel(logging.ERROR)  # it tells of a next try, but this process ends
    meter = progress.Meter(sys.stderr)
    try:
        result = _sync(settings, meter)
    except KeyboardInterrupt:
        meter.end()
        print("pisync: stopped; everything is kept, and what was delivered stays delivered", file=sys.stderr)
        raise
    finally:
        meter.end()
    if arguments.json:
        print(json.dumps(result))
    else:
        print(progress.summary(result))
    return _verdict(result, sys.stderr)


def enroll(arguments: argparse.Namespace) -> int:
    from pisync_agent import client, enrolling
    from pisync_agent.clock import SystemClock

    def ask(device_id: str | None) -> "Identity":
        return client.enroll(
            arguments.url,
            arguments.code,
            device_id=device_id,
            insecure_http=arguments.insecure_http,
            ca_file=arguments.ca,
            clock=SystemClock(),
        )

    home = settings_of(arguments)[config.HOME]
    given = enrolling.enroll(
        home, arguments.url, ask=ask, device_id=arguments.device_id, again=arguments.again, remark=_remark
    )
    print(f"enrolled as {given.device_id} at {given.url}")
    return DONE


def show_config(arguments: argparse.Namespace) -> int:
    described = settings_of(arguments).describe()
    width = max(len(each.name) for each in described)
    if arguments.json:
        print(json.dumps([asdict(each) for each in described]))
    else:
        print("\n".join(f"{each.name:<{width}}  {each.value}  ({each.source})" for each in described))
    return DONE


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings of this call. From here on the process is the agent's user."""
    settings = config.settings_from(arguments, os.environ)
    become_owner(settings[config.HOME])
    return settings


def become_owner(home: Path) -> None:
    """Where root calls, go on as the owner of `home`: files of root's there would shut the agent's own service out."""
    with contextlib.suppress(OSError):
        owner = home.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.setgroups([])
            os.setgid(owner.st_gid)
            os.setuid(owner.st_uid)


def _remark(text: str) -> None:
    print(f"pisync: {text}", file=sys.stderr)


def _data(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongUsage(
            f"--data is not JSON ({error}); nothing was recorded. Example: --data '{{\"score\": 7}}'"
        ) from error
    if not isinstance(data, dict):
        raise WrongUsage("--data must be a JSON object, such as '{\"score\": 7}'; nothing was recorded")
    return data


def _line_reader(arguments: argparse.Namespace) -> ndjson.ReadLine:
    """How a line becomes an event. Raises WrongUsage where flags contradict that."""
    if arguments.id is not None:
        raise WrongUsage('--id names one event; with - give each line of `pisync record -` its own "id"')
    if arguments.type != "-":
        fixed = {"type": arguments.type, "learner_id": arguments.learner, "object_id": arguments.object}
        return lambda line: fixed | {"data": line}
    if (arguments.learner, arguments.object, arguments.data) != (None, None, None):
        raise WrongUsage(
            "with `pisync record -` each line is a whole event; --learner, --object and --data have no place"
        )
    return ndjson.whole_event


def _sync(settings: Settings, meter: progress.Meter) -> dict[str, Any]:
    """One sync run, by the service or by this process: its result as JSON."""
    from pisync_agent.service import Service

    home, deadline = settings[config.HOME], time.monotonic() + START_S
    while True:
        began = time.monotonic()
        try:
            if (result := local.sync(files.socket(home), meter.show)) is not None:
                return result
            return Service(home, settings=settings).sync_once(meter.show)
        except (LockHeld, ConnectionError, local.Stopped):
            now = time.monotonic()
            if now - began > START_S:  # it was at work, and ended before it was done
                deadline = now + START_S
            if now > deadline:
                raise
            time.sleep(0.05)  # its socket opens, or its lock is freed, in a moment; neither can be waited for


def _verdict(result: Mapping[str, Any], err: TextIO) -> int:
    """The exit code of a sync run, and on `err` what kept it from being 0."""
    failure = result.get("failure")
    if failure:
        kind = failure.get("kind") or failure["code"]
        print(f"pisync: the sync run failed ({kind}): {failure['detail']}", file=err)
        return {"unreachable": UNREACHABLE, "refused": REFUSED}.get(failure["code"], WAITS)
    if result.get("offline"):
        print("pisync: this device has no link; everything is kept, and delivered when there is one", file=err)
        return UNREACHABLE
    return WAITS if result["waiting"] or result["rejected"] else DONE
