"""The worker's settings."""

import re
from dataclasses import dataclass
from typing import Any, Final

from pisync_common.settings import Setting, choice, duration, integer, optional
from pisync_receiver.worker.alerts.quiet import QuietHours, quiet_hours, time_zone

_NAME: Final = re.compile(r"[A-Za-z0-9._:-]{1,200}")
_BEFORE_A_URL: Final = re.compile(r"[\s,]+(?=[A-Za-z0-9]{1,32}://)")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where something listens."""

    host: str
    port: int


def _amqp(value: str) -> str:
    if not value.startswith(("amqp://", "amqps://")):
        raise ValueError("not the address of a RabbitMQ, such as amqp://user:password@host:5672/vhost")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("not 1 to 200 letters, digits, dots, colons, underscores and hyphens")
    return value


def alert_urls(value: str) -> tuple[str, ...]:
    """URLs between commas or spaces; commas inside of one stay."""
    urls = tuple(_BEFORE_A_URL.split(value.strip())) if value.strip() else ()
    if not all("://" in url for url in urls):
        raise ValueError("not Apprise URLs between commas")
    return urls


def address(value: str) -> Address:
    """`127.0.0.1:9180` or `[::1]:9180`."""
    host, _, port = value.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("not an address and a port, such as 127.0.0.1:9180")
    return Address(host=host.removeprefix("[").removesuffix("]"), port=int(port))


AMQP_URL = Setting(
    name="amqp_url",
    default="",
    parse=optional(_amqp),
    metavar="URL",
    help="the RabbitMQ that `worker` hands stored events to; empty hands on none",
)
AMQP_EXCHANGE = Setting(
    name="amqp_exchange",
    default="pisync.events",
    parse=_name,
    metavar="NAME",
    help="the topic exchange that `worker` publishes to",
)
AMQP_QUEUE = Setting(
    name="amqp_queue",
    default="pisync.events",
    parse=_name,
    metavar="NAME",
    help="the queue that `worker` makes and binds to everything",
)
AMQP_QUEUE_TYPE = Setting(
    name="amqp_queue_type",
    default="quorum",
    parse=choice("quorum", "stream", "classic", "none"),
    metavar="TYPE",
    help="what it makes: quorum, stream, classic, or none where consumers bind queues of their own",
)
CONSUMER = Setting(
    name="consumer",
    default="rabbitmq",
    parse=_name,
    metavar="NAME",
    help="the name that the position of `worker` in the stored events has; a new name starts at the first event",
)
MESSAGE_EVENTS = Setting(
    name="message_events",
    default="100",
    parse=integer(1, 1000),
    metavar="N",
    help="events of one device that may share a message",
)
ALERT_URLS = Setting[tuple[str, ...]](
    name="alert_urls",
    default="",
    parse=alert_urls,
    secret=True,
    flag=False,
    metavar="URLS",
    help="whom `worker` tells of devices that keep failing: Apprise URLs between commas",
)
QUIET_HOURS = Setting[QuietHours | None](
    name="quiet_hours",
    default="",
    parse=optional(quiet_hours),
    metavar="HH:MM-HH:MM",
    help="when alerts wait, such as 22:00-06:00",
)
TIME_ZONE = Setting(
    name="time_zone",
    default="UTC",
    parse=time_zone,
    metavar="ZONE",
    help="the zone of quiet hours and of the times in alerts, such as Africa/Nairobi",
)
DIGEST_OVER = Setting(
    name="digest_over",
    default="5",
    parse=integer(0, 1_000_000),
    metavar="N",
    help="more devices than this at once share one alert",
)
DIGEST_WINDOW = Setting(
    name="digest_window",
    default="60s",
    parse=duration,
    metavar="TIME",
    help="how long an alert waits for others",
)
DIGEST_EVERY = Setting(
    name="digest_every",
    default="15m",
    parse=duration,
    metavar="TIME",
    help="the least time from an alert about many devices to the next",
)
METRICS_ADDRESS = Setting[Address | None](
    name="metrics_address",
    default="",
    parse=optional(address),
    metavar="HOST:PORT",
    help="where `worker` answers /metrics, such as 127.0.0.1:9180; empty answers nowhere",
)

WORKING: Final[tuple[Setting[Any], ...]] = (
    AMQP_URL,
    AMQP_EXCHANGE,
    AMQP_QUEUE,
    AMQP_QUEUE_TYPE,
    CONSUMER,
    MESSAGE_EVENTS,
    ALERT_URLS,
    QUIET_HOURS,
    TIME_ZONE,
    DIGEST_OVER,
    DIGEST_WINDOW,
    DIGEST_EVERY,
    METRICS_ADDRESS,
)
