"""The agent's settings."""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pisync_agent.errors import StoreUnusable
from pisync_common.errors import SettingError
from pisync_common.limits import MIB
from pisync_common.quiet_hours import QuietHours, quiet_hours
from pisync_common.settings import (
    Setting,
    Settings,
    boolean,
    choice,
    duration,
    find_file,
    flags_of,
    integer,
    is_there,
    load,
    optional,
    path,
    size,
    some_time,
    users_folder,
)

if TYPE_CHECKING:
    from pisync_agent.outbox.models import OutboxLimits

PREFIX: Final = "PISYNC_AGENT_"
SYSTEM_FILE: Final = Path("/etc/pisync/agent.toml")
SYSTEM_HOME: Final = Path("/var/lib/pisync")
"""The folder of a system's service. Where it exists it is everyone's: a private outbox beside it is never delivered."""
LEAST_QUEUE: Final = 1 * MIB
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+")
LEAST_RATE: Final = 4_000
"""Bytes a second: twice the pace at which a request has taken too long (`client.SLOWEST_BYTES`)."""

_RATE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([km]bit)(?:/s)?")
_RATE_UNITS: Final = {"kbit": 1_000, "mbit": 1_000_000}


def _default_home() -> str:
    if is_there(SYSTEM_HOME):
        return str(SYSTEM_HOME)
    import platformdirs  # takes longer to import than all the rest of the settings

    return users_folder(lambda: platformdirs.user_data_dir("pisync"))


def _queue_size(value: str) -> int:
    wanted = size(value)
    if wanted < LEAST_QUEUE:
        raise ValueError("less than 1MiB")
    return wanted


def _origins(value: str) -> frozenset[str]:
    """Parse origins of web pages, separated by commas or spaces."""
    found = frozenset(value.lower().replace(",", " ").split())
    for origin in found:
        if origin != "null" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not an origin, such as http://127.0.0.1:8080 (without a path) or null")
    return found


def _rate(value: str) -> float:
    """Parse bits a second; return bytes a second."""
    match = _RATE.fullmatch(value.strip().lower())
    if match is None:
        raise ValueError("not a rate, such as 64kbit or 1Mbit")
    if (rate := float(match[1]) * _RATE_UNITS[match[2]] / 8) < LEAST_RATE:
        raise ValueError("slower than 32kbit, at which requests would take too long")
    return rate


HOME = Setting(
    name="home",
    default=_default_home,
    default_shown=f"{SYSTEM_HOME} if it exists, else <the user's data folder>/pisync",
    parse=path,
    metavar="DIR",
    help="the agent's folder: outbox, identity and socket",
)
MAX_QUEUE = Setting(
    name="max_queue",
    default="256MiB",
    parse=_queue_size,
    metavar="SIZE",
    help="how large the outbox may grow; never more than half of the disk that is free",
)
KEEP_DELIVERED = Setting(
    name="keep_delivered",
    default="32MiB",
    parse=size,
    metavar="SIZE",
    help="how many bytes of delivered events are kept, for a receiver restored from an older copy",
)
SYNC_DELAY = Setting(
    name="sync_delay",
    default="45s",
    parse=duration,
    metavar="TIME",
    help="how long a new event waits for others, to be sent together with them",
)
METERED_AUTO: Final = "auto"
METERED_YES: Final = "yes"
METERED_NO: Final = "no"
METERED = Setting(
    name="metered",
    default=METERED_AUTO,
    parse=choice(METERED_AUTO, METERED_YES, METERED_NO),
    metavar="WHEN",
    help="whether the link is paid for by its bytes: yes, no, or auto, which asks NetworkManager",
)
METERED_DELAY = Setting(
    name="metered_delay",
    default="15m",
    parse=duration,
    metavar="TIME",
    help="how long a new event waits for others on a metered link; never less than sync_delay",
)
QUIET_HOURS = Setting[QuietHours | None](
    name="quiet_hours",
    default="",
    parse=optional(quiet_hours),
    metavar="HOURS",
    help="when nothing is sent unless `pisync sync` asks for it, by the device's local time, such as 08:00-15:00",
)
MAX_RATE = Setting[float | None](
    name="max_rate",
    default="",
    parse=optional(_rate),
    metavar="RATE",
    help="how fast events are sent at most, such as 64kbit or 1Mbit a second; empty for no limit",
)
SYNC_INTERVAL = Setting(
    name="sync_interval",
    default="15m",
    parse=some_time,
    metavar="TIME",
    help="a sync run starts at least this often",
)
RETRY_BASE = Setting(
    name="retry_base",
    default="5s",
    parse=some_time,
    metavar="TIME",
    help="the shortest wait after a failed sync run; the longest starts at twice that and doubles each time",
)
RETRY_CAP = Setting(
    name="retry_cap",
    default="15m",
    parse=some_time,
    metavar="TIME",
    help="the longest wait after any number of failed sync runs",
)
STOP_TIMEOUT = Setting(
    name="stop_timeout",
    default="3s",
    parse=duration,
    metavar="TIME",
    help="how long a request in flight may take to finish when the service stops",
)
HTTP_PORT = Setting(
    name="http_port",
    default="",
    parse=optional(integer(1, 65535)),
    metavar="PORT",
    help="the port of 127.0.0.1 on which apps record over HTTP, such as 8747; empty: none",
)
HTTP_ORIGINS = Setting(
    name="http_origins",
    default="",
    parse=_origins,
    metavar="ORIGINS",
    help="the origins of web pages that may record, such as http://127.0.0.1:8080; null is that of files",
)
HTTP_TOKEN = Setting(
    name="http_token",
    default="on",
    parse=boolean,
    metavar="ON|OFF",
    help="whether HTTP needs the token in the agent's file http-token; off opens it to every user of the device",
)
LOG_LEVEL = Setting(
    name="log_level",
    default="info",
    parse=choice("debug", "info", "warning", "error"),
    metavar="LEVEL",
    help="how much is logged: debug, info, warning or error",
)

SETTINGS: Final[tuple[Setting[Any], ...]] = (
    HOME,
    MAX_QUEUE,
    KEEP_DELIVERED,
    SYNC_DELAY,
    METERED,
    METERED_DELAY,
    QUIET_HOURS,
    MAX_RATE,
    SYNC_INTERVAL,
    RETRY_BASE,
    RETRY_CAP,
    STOP_TIMEOUT,
    HTTP_PORT,
    HTTP_ORIGINS,
    HTTP_TOKEN,
    LOG_LEVEL,
)


def settings_from(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Load every setting: the command's flags, the environment, the TOML file, the defaults. Raises SettingError."""
    file = find_file(getattr(arguments, "config", None), prefix=PREFIX, environ=environ, default=SYSTEM_FILE)
    return load(SETTINGS, prefix=PREFIX, environ=environ, flags=flags_of(arguments, SETTINGS), toml_file=file)


def folder(given: Path | str) -> Path:
    """Return the agent's folder that a caller names, absolute. Raises SettingError."""
    try:
        return path(str(given))
    except ValueError as error:
        raise SettingError(f"home = {str(given)!r}: {error}") from error


def refuse_private(home: Path) -> None:
    """Refuse to record into a private folder beside the system's service. Raises StoreUnusable."""
    if is_there(SYSTEM_HOME):
        shared: Path = settings_from(argparse.Namespace(), {})[HOME]
        if os.path.realpath(home) != os.path.realpath(shared):
            raise StoreUnusable(
                f"{home} is not the folder of this device's service, {shared}, and nothing delivers from it: nothing "
                "was recorded. Record without naming a folder (--home, PISYNC_AGENT_HOME, the argument of Recorder)"
            )


def limits(settings: Settings) -> "OutboxLimits":
    """Return how much of the disk the outbox may use."""
    from pisync_agent.outbox.models import OutboxLimits

    return OutboxLimits(max_bytes=settings[MAX_QUEUE], keep_delivered_bytes=settings[KEEP_DELIVERED])
