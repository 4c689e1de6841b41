"""The receiver's settings, and what may not be combined."""

import argparse
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from platformdirs import user_data_path

from pisync_common.errors import SettingError
from pisync_common.settings import (
    Setting,
    Settings,
    boolean,
    choice,
    duration,
    find_file,
    flags_of,
    integer,
    load,
    optional,
    size,
    some_time,
)
from pisync_receiver.forwarded import networks
from pisync_receiver.sharing.address import redis_url
from pisync_receiver.store.address import SQLITE, Address, address
from pisync_receiver.worker.settings import WORKING

PREFIX: Final = "PISYNC_RECEIVER_"
SYSTEM_FILE: Final = Path("/etc/pisync/receiver.toml")
_PORT: Final = integer(0, 65535)


def _default_url() -> str:
    return f"{SQLITE}{user_data_path('pisync-receiver') / 'receiver.db'}"


def _port(value: str) -> int:
    if "://" in value:
        raise ValueError(
            "not a port; Kubernetes sets this variable for a Service named pisync-receiver: "
            "set enableServiceLinks: false in the pod, or give --port"
        )
    return _PORT(value)


def _host(value: str) -> str:
    if not value or "/" in value or value.strip() != value:
        raise ValueError("not an address to listen on, such as 127.0.0.1, ::1 or 0.0.0.0")
    return value


HOST = Setting(name="host", default="127.0.0.1", parse=_host, metavar="ADDRESS", help="the address to listen on")
PORT = Setting(name="port", default="8080", parse=_port, metavar="N", help="the port to listen on; 0 takes a free one")
DATABASE: Setting[Address] = Setting(
    name="database_url",
    default=_default_url,
    default_shown="sqlite:///<the user's data folder>/pisync-receiver/receiver.db",
    parse=address,
    metavar="URL",
    help="where everything is stored: a file (an absolute path has four slashes) or postgresql://…",
)
WORKERS = Setting(
    name="workers",
    default="1",
    parse=integer(1, 1024),
    metavar="N",
    help="processes that serve; on SQLite exactly one",
)
AUTH = Setting(
    name="auth",
    default="on",
    parse=boolean,
    metavar="on|off",
    help="whether callers need a token; off is for a demo on a loopback address",
)
LOG_LEVEL = Setting(
    name="log_level",
    default="info",
    parse=choice("debug", "info", "warning", "error"),
    metavar="LEVEL",
    help="how much the log says: debug, info, warning or error",
)
MAX_CONNECTIONS = Setting(
    name="max_connections",
    default="4096",
    parse=integer(1, 1_000_000),
    metavar="N",
    help="connections served at once; more are answered 503 with Retry-After",
)
DEVICE_RATE = Setting(
    name="device_rate",
    default="500",
    parse=integer(0, 1_000_000),
    metavar="N",
    help="requests a second that one device may send, five times as many at once; more are answered 429; 0 is no limit",
)
REDIS = Setting(
    name="redis_url",
    default="",
    parse=optional(redis_url),
    metavar="URL",
    help="the Redis through which several receivers share rates, tokens and answers; empty for none",
)
MAX_WAITING = Setting(
    name="max_waiting",
    default="10000",
    parse=integer(1, 10_000_000),
    metavar="N",
    help="requests that may wait for the database; more are answered 503 with Retry-After",
)
MAX_WAITING_BYTES = Setting(
    name="max_waiting_bytes",
    default="64MiB",
    parse=size,
    metavar="SIZE",
    help="memory that waiting requests may hold; more are answered 503 with Retry-After",
)
MAX_WAIT = Setting(
    name="max_wait",
    default="30s",
    parse=some_time,
    metavar="TIME",
    help="how long a request may wait for its turn; one whose turn comes later is answered 503 with Retry-After",
)
IDLE_TIMEOUT = Setting(
    name="idle_timeout",
    default="75s",
    parse=duration,
    metavar="TIME",
    help="how long a connection may stay open without a request; longer than the gateway before it keeps one",
)
TRUSTED_PROXIES = Setting(
    name="trusted_proxies",
    default="",
    parse=networks,
    metavar="ADDRESSES",
    help="gateways whose X-Forwarded-For is believed, between commas; anybody else's is not",
)
DRAIN_TIMEOUT = Setting(
    name="drain_timeout",
    default="0s",
    parse=duration,
    metavar="TIME",
    help="how long /readyz answers 503 before the receiver stops, so that a gateway sends nothing more",
)
STOP_TIMEOUT = Setting(
    name="stop_timeout",
    default="30s",
    parse=duration,
    metavar="TIME",
    help="how long requests under way may take to finish when the receiver stops",
)

SETTINGS: Final[tuple[Setting[Any], ...]] = (
    HOST,
    PORT,
    DATABASE,
    WORKERS,
    AUTH,
    LOG_LEVEL,
    MAX_CONNECTIONS,
    DEVICE_RATE,
    REDIS,
    MAX_WAITING,
    MAX_WAITING_BYTES,
    MAX_WAIT,
    IDLE_TIMEOUT,
    TRUSTED_PROXIES,
    DRAIN_TIMEOUT,
    STOP_TIMEOUT,
    *WORKING,
)
SERVING: Final = tuple(setting for setting in SETTINGS if setting not in WORKING)


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The database file and what stands beside it."""

    database: Path

    @property
    def lock(self) -> Path:
        return self.database.with_name(self.database.name + ".lock")

    @property
    def control(self) -> Path:
        return self.database.with_name(self.database.name + ".control")

    @property
    def url(self) -> str:
        return f"{SQLITE}{self.database}"


def settings_from(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Every setting, from the command's flags, the environment, the TOML file or the defaults. Raises SettingError."""
    file = find_file(getattr(arguments, "config", None), prefix=PREFIX, environ=environ, default=SYSTEM_FILE)
    return load(SETTINGS, prefix=PREFIX, environ=environ, flags=flags_of(arguments, SETTINGS), toml_file=file)


def check_serving(settings: Settings) -> None:
    """Raise SettingError for what no `serve` may do: several workers, or Redis, on SQLite; an open door beyond this
    machine."""
    if (workers := settings[WORKERS]) > 1 and isinstance(settings[DATABASE], Path):
        raise SettingError(
            f"workers = {str(workers)!r} ({settings.source(WORKERS)}): SQLite has exactly one writer, so one process "
            "serves it; leave it at 1, or store in PostgreSQL (--database-url postgresql://…), which takes many"
        )
    if settings[REDIS] is not None and isinstance(settings[DATABASE], Path):
        raise SettingError(
            f"redis_url = '{settings[REDIS]}' ({settings.source(REDIS)}): it is for several receivers, and SQLite has "
            "one, which needs none; leave it out, or store in PostgreSQL (--database-url postgresql://…)"
        )
    if not settings[AUTH] and not is_loopback(settings[HOST]):
        raise SettingError(
            f"auth = 'off' ({settings.source(AUTH)}): anyone who reaches {settings[HOST]} could read and write "
            "everything; leave it on, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine reaches `host`. A name other than localhost could mean anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
