"""The receiver's settings, and what may not be combined."""

import argparse
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from platformdirs import user_data_dir

from pisync_common.errors import SettingError
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
    load,
    optional,
    path,
    size,
    some_time,
    users_folder,
)
from pisync_receiver.alerts.rules import time_zone
from pisync_receiver.cache import redis_url
from pisync_receiver.http.forwarded import networks
from pisync_receiver.http.oidc import SETTINGS as OIDC
from pisync_receiver.store.address import SQLITE, Address, address

PREFIX: Final = "PISYNC_RECEIVER_"
SYSTEM_FILE: Final = Path("/etc/pisync/receiver.toml")
_ERASURES: Final = Path("/var/lib/pisync-receiver/erasures")
_PORT: Final = integer(0, 65535)
_BEFORE_A_URL: Final = re.compile(r"[\s,]+(?=[A-Za-z0-9]{1,32}://)")
_BROKER_NAME: Final = re.compile(r"[A-Za-z0-9._:-]{1,200}")


def _default_url() -> str:
    return f"{SQLITE}{users_folder(lambda: user_data_dir('pisync-receiver'))}/receiver.db"


def _port(value: str) -> int:
    if "://" in value:
        raise ValueError(
            "not a port; Kubernetes sets this variable for a Service named pisync-receiver: "
            "set enableServiceLinks: false in the pod, or give --port"
        )
    return _PORT(value)


def _host(value: str) -> str:
    try:
        encoded = value.encode("idna")  # as a socket does it
    except UnicodeError:
        encoded = b""
    if not encoded or "/" in value or "\0" in value or value.strip() != value:
        raise ValueError("not an address to listen on, such as 127.0.0.1, ::1 or 0.0.0.0")
    return value


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("not the address of a receiver, such as https://pisync.example")
    return value.rstrip("/")


def _announced(value: str) -> str:
    if not (value.isascii() and value.isprintable()) or " " in value:  # it travels in a header
        raise ValueError("not the address of a receiver in ASCII, such as https://pisync.example")
    return _url(value)


def alert_urls(value: str) -> tuple[str, ...]:
    """Parse URLs separated by commas or spaces; commas inside a URL stay."""
    urls = tuple(_BEFORE_A_URL.split(value.strip())) if value.strip() else ()
    if not all("://" in url for url in urls):
        raise ValueError("not Apprise URLs separated by commas")
    return urls


def _amqp(value: str) -> str:
    if not value.startswith(("amqp://", "amqps://")):
        raise ValueError("not the address of a RabbitMQ, such as amqp://user:password@host:5672/vhost")
    return value


def _broker_name(value: str) -> str:
    if not _BROKER_NAME.fullmatch(value):
        raise ValueError("not 1 to 200 letters, digits, dots, colons, underscores and hyphens")
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
SOCKET = Setting(
    name="socket",
    default="",
    default_shown="beside an SQLite database, its name with .sock; none for PostgreSQL",
    parse=optional(path),
    metavar="FILE",
    help="the Unix socket through which this machine's commands reach the receiver, open to its owner alone",
)
SILENT_AFTER = Setting(
    name="silent_after",
    default="7d",
    parse=some_time,
    metavar="TIME",
    help="how long a device may be without contact before it counts as silent; a site may have a time of its own",
)
URL = Setting(
    name="url",
    default="",
    parse=optional(_url),
    metavar="URL",
    help="the receiver to ask, from anywhere; empty for this machine's own",
)
TOKEN_FILE = Setting(
    name="token_file",
    default="",
    parse=optional(path),
    metavar="FILE",
    help="a file with the token to send to --url",
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
    parse=integer(1, 100_000),
    metavar="N",
    help="connections served at once; a new connection replaces an idle connection, or is answered 503",
)
DEVICE_RATE = Setting(
    name="device_rate",
    default="500",
    parse=integer(0, 1_000_000),
    metavar="N",
    help="requests a second that a device may send, five times as many at once; more are answered 429; 0 is no limit",
)
REDIS = Setting(
    name="redis_url",
    default="",
    parse=optional(redis_url),
    metavar="URL",
    help="a Redis in which several receivers keep fleet-wide answers for one another; empty for none",
)
CACHE_TTL = Setting(
    name="cache_ttl",
    default="3s",
    parse=duration,
    metavar="TIME",
    help="how long a fleet-wide answer may be kept; 0s for not at all",
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
    help="how long a request may wait for its turn; after that it is answered 503 with Retry-After",
)
IDLE_TIMEOUT = Setting(
    name="idle_timeout",
    default="150s",
    parse=duration,
    metavar="TIME",
    help="how long a connection may stay open without a request; longer than the gateway before it keeps one",
)
TRUSTED_PROXIES = Setting(
    name="trusted_proxies",
    default="",
    parse=networks,
    metavar="ADDRESSES",
    help="gateways whose X-Forwarded-For and X-Forwarded-Proto are believed, between commas",
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

PUBLIC_URL = Setting(
    name="public_url",
    default="",
    parse=optional(_url),
    metavar="URL",
    help="the address at which people and devices reach this receiver, such as https://pisync.example",
)
ANNOUNCE_URL = Setting(
    name="announce_url",
    default="",
    parse=optional(_announced),
    metavar="URL",
    help="the receiver's new address: devices use it once they have proved that it knows them; empty for none",
)

ERASURES_FILE = Setting(
    name="erasures_file",
    default="",
    default_shown=f"beside an SQLite database, its name with .erasures; {_ERASURES} for PostgreSQL",
    parse=optional(path),
    metavar="FILE",
    help="what keeps erased learners from coming back with a restored backup; keep it apart from backups",
)

ALERT_URLS = Setting[tuple[str, ...]](
    name="alert_urls",
    default="",
    parse=alert_urls,
    secret=True,
    flag=False,
    metavar="URLS",
    help="where notices about devices and sites go: Apprise URLs separated by commas; empty for the log alone",
)
QUIET_HOURS = Setting[QuietHours | None](
    name="quiet_hours",
    default="",
    parse=optional(quiet_hours),
    metavar="HH:MM-HH:MM",
    help="when no notice is sent, such as 22:00-06:00",
)
TIME_ZONE = Setting(
    name="time_zone",
    default="UTC",
    parse=time_zone,
    metavar="ZONE",
    help="the zone of quiet hours, of the daily digest and of times in notices, such as Africa/Nairobi",
)
DIGEST_HOUR = Setting[int | None](
    name="digest_hour",
    default="",
    parse=optional(integer(0, 23)),
    metavar="HOUR",
    help="the hour at which a digest of the fleet is sent each day, such as 7; empty for none",
)
AMQP_URL = Setting(
    name="amqp_url",
    default="",
    parse=optional(_amqp),
    metavar="URL",
    help="the RabbitMQ that `worker` publishes stored events to",
)
AMQP_EXCHANGE = Setting(
    name="amqp_exchange",
    default="pisync.events",
    parse=_broker_name,
    metavar="NAME",
    help="the topic exchange that `worker` publishes to",
)
AMQP_QUEUE = Setting(
    name="amqp_queue",
    default="pisync.events",
    parse=_broker_name,
    metavar="NAME",
    help="the queue that `worker` declares and binds to every event",
)
AMQP_QUEUE_TYPE = Setting(
    name="amqp_queue_type",
    default="quorum",
    parse=choice("quorum", "stream", "classic", "none"),
    metavar="TYPE",
    help="the type of that queue: quorum, stream, classic, or none if consumers bind queues of their own",
)
CONSUMER = Setting(
    name="consumer",
    default="rabbitmq",
    parse=_broker_name,
    metavar="NAME",
    help="the name under which `worker` keeps its position; a new name starts at the first event",
)
MESSAGE_EVENTS = Setting(
    name="message_events",
    default="100",
    parse=integer(1, 1000),
    metavar="N",
    help="the most events that `worker` puts into one message; the same on every worker of a consumer",
)

PUBLISHING: Final = (AMQP_URL, AMQP_EXCHANGE, AMQP_QUEUE, AMQP_QUEUE_TYPE, CONSUMER, MESSAGE_EVENTS)
"""What only a worker needs."""
SETTINGS: Final[tuple[Setting[Any], ...]] = (
    HOST,
    PORT,
    DATABASE,
    SOCKET,
    AUTH,
    LOG_LEVEL,
    MAX_CONNECTIONS,
    DEVICE_RATE,
    REDIS,
    CACHE_TTL,
    MAX_WAITING,
    MAX_WAITING_BYTES,
    MAX_WAIT,
    IDLE_TIMEOUT,
    TRUSTED_PROXIES,
    DRAIN_TIMEOUT,
    STOP_TIMEOUT,
    PUBLIC_URL,
    ANNOUNCE_URL,
    ERASURES_FILE,
    SILENT_AFTER,
    URL,
    TOKEN_FILE,
    ALERT_URLS,
    QUIET_HOURS,
    TIME_ZONE,
    DIGEST_HOUR,
    *OIDC,
    *PUBLISHING,
)
ASKING: Final = (DATABASE, SOCKET, ERASURES_FILE, URL, TOKEN_FILE)
"""What a command needs to reach a receiver."""
SERVING: Final = tuple(setting for setting in SETTINGS if setting not in (URL, TOKEN_FILE, *PUBLISHING))


def settings_from(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Every setting, from the command's flags, the environment, the TOML file or the defaults. Raises SettingError."""
    file = find_file(getattr(arguments, "config", None), prefix=PREFIX, environ=environ, default=SYSTEM_FILE)
    return load(SETTINGS, prefix=PREFIX, environ=environ, flags=flags_of(arguments, SETTINGS), toml_file=file)


def socket_path(settings: Settings) -> Path | None:
    """Return the path of the receiver's Unix socket; None where it has none."""
    database = settings[DATABASE]
    beside = database.with_name(f"{database.name}.sock") if isinstance(database, Path) else None
    return settings[SOCKET] or beside


def erasures_path(settings: Settings) -> Path:
    """Return the path of the erasures file."""
    database = settings[DATABASE]
    beside = database.with_name(f"{database.name}.erasures") if isinstance(database, Path) else _ERASURES
    return settings[ERASURES_FILE] or beside


def check_serving(settings: Settings) -> None:
    """Raise SettingError for a receiver that would be open to other machines without tokens."""
    if not settings[AUTH] and not is_loopback(settings[HOST]):
        raise SettingError(
            f"auth = 'off' ({settings.source(AUTH)}): anyone who reaches {settings[HOST]} could read and write "
            "everything; leave it on, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine alone. A name other than localhost could mean anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
