"""The agent's settings."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pisync_agent.errors import StoreUnusable
from pisync_agent.outbox.models import OutboxLimits
from pisync_common.errors import SettingError
from pisync_common.limits import MIB
from pisync_common.settings import (
    Setting,
    Settings,
    choice,
    duration,
    find_file,
    flags_of,
    is_there,
    load,
    path,
    size,
    some_time,
    users_folder,
)

PREFIX: Final = "PISYNC_AGENT_"
SYSTEM_FILE: Final = Path("/etc/pisync/agent.toml")
SYSTEM_HOME: Final = Path("/var/lib/pisync")
"""The folder of a system's service. Where it exists it is everyone's: a private outbox beside it is never delivered."""
LEAST_QUEUE: Final = 1 * MIB


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
    default="3s",
    parse=duration,
    metavar="TIME",
    help="how long a new event waits for others, to be sent together with them",
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
    SYNC_INTERVAL,
    RETRY_BASE,
    RETRY_CAP,
    STOP_TIMEOUT,
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


def limits(settings: Settings) -> OutboxLimits:
    """Return how much of the disk the outbox may use."""
    return OutboxLimits(max_bytes=settings[MAX_QUEUE], keep_delivered_bytes=settings[KEEP_DELIVERED])
