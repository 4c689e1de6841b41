"""The agent's settings."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pisync_agent.home import PREFIX, SYSTEM_FILE, default_home
from pisync_agent.outbox.models import OutboxLimits
from pisync_common.limits import MIB
from pisync_common.settings import Setting, Settings, choice, duration, find_file, flags_of, load, size

LEAST_QUEUE: Final = 1 * MIB
__all__ = ["PREFIX", "SETTINGS", "SYSTEM_FILE", "limits", "settings_from"]


def _folder(value: str) -> Path:
    if not value or "\0" in value:
        raise ValueError("not a folder, such as /var/lib/pisync")
    return Path(value).expanduser().absolute()


def _queue_size(value: str) -> int:
    wanted = size(value)
    if wanted < LEAST_QUEUE:
        raise ValueError("less than 1MiB")
    return wanted


def _positive(value: str) -> float:
    seconds = duration(value)
    if seconds <= 0:
        raise ValueError("not longer than 0s")
    return seconds


HOME = Setting(
    name="home",
    default=lambda: str(default_home()),
    default_shown="<the user's data folder>/pisync",
    parse=_folder,
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
    help="how much of what was delivered is kept, for a receiver restored from an older copy",
)
SYNC_DELAY = Setting(
    name="sync_delay",
    default="3s",
    parse=duration,
    metavar="TIME",
    help="how long a new event waits for others, so that they are sent together",
)
SYNC_INTERVAL = Setting(
    name="sync_interval",
    default="15m",
    parse=_positive,
    metavar="TIME",
    help="a sync run starts at least this often",
)
RETRY_BASE = Setting(
    name="retry_base",
    default="5s",
    parse=_positive,
    metavar="TIME",
    help="the shortest wait after a failed sync run; the longest starts at twice that and doubles with each",
)
RETRY_CAP = Setting(
    name="retry_cap",
    default="15m",
    parse=_positive,
    metavar="TIME",
    help="the longest wait after any number of failed sync runs",
)
STOP_TIMEOUT = Setting(
    name="stop_timeout",
    default="20s",
    parse=duration,
    metavar="TIME",
    help="how long a request under way may take to finish when the service stops",
)
LOG_LEVEL = Setting(
    name="log_level",
    default="info",
    parse=choice("debug", "info", "warning", "error"),
    metavar="LEVEL",
    help="how much the log says: debug, info, warning or error",
)

SETTINGS: Final[tuple[Setting[Any], ...]] = (
    HOME,
    MAX_QUEUE,
    KEEP_DELIVERED,
    SYNC_DELAY,
    SYNC_INTERVAL,
    RETRY_BASE,
    RETRY_CAP,
    STOP_TIMEOUT,
    LOG_LEVEL,
)


def settings_from(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Every setting, from the command's flags, the environment, the TOML file or the defaults. Raises SettingError."""
    file = find_file(getattr(arguments, "config", None), prefix=PREFIX, environ=environ, default=SYSTEM_FILE)
    return load(SETTINGS, prefix=PREFIX, environ=environ, flags=flags_of(arguments, SETTINGS), toml_file=file)


def limits(settings: Settings) -> OutboxLimits:
    """How much of the disk the outbox may use."""
    return OutboxLimits(max_bytes=settings[MAX_QUEUE], keep_delivered_bytes=settings[KEEP_DELIVERED])
