"""`pisync-receiver worker`: from the command line to a worker that runs."""

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TextIO

from pisync_common.errors import SettingError
from pisync_common.settings import Settings
from pisync_common.times import now_ms
from pisync_receiver import config, logs
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.worker import settings as own
from pisync_receiver.worker.alerts.plan import Rules
from pisync_receiver.worker.rabbitmq import Place

NOW: Final = "now"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one worker is to do. Raw URLs hold secrets: `repr` leaves them out."""

    database: PostgresUrl
    amqp_url: str | None
    place: Place
    consumer: str
    message_events: int
    alert_urls: tuple[str, ...]
    rules: Rules
    metrics_address: own.Address | None
    once: bool
    begin_from: int | str | None
    """An event's id, `now`, or None for where it was."""

    def __repr__(self) -> str:
        return f"Job(consumer={self.consumer!r})"


def work(arguments: argparse.Namespace, environ: Mapping[str, str], *, err: TextIO) -> None:
    """Work until a signal comes, or (`--once`) until nothing is left. Raises SettingError for what cannot be, any
    other PiSyncError for what could not be done."""
    database, settings = _settings(arguments, environ)
    job = _job(arguments, settings, database)
    logs.configure(settings[config.LOG_LEVEL], err)
    from pisync_receiver.worker.running import run  # the driver, which no other command needs

    run(job, now_ms=now_ms, random=random.uniform)


def _settings(arguments: argparse.Namespace, environ: Mapping[str, str]) -> tuple[PostgresUrl, Settings]:
    """PostgreSQL's address and the settings. Raises SettingError where the database is not PostgreSQL."""
    settings = config.settings_from(arguments, environ)
    place = settings[config.DATABASE]
    if not isinstance(place, PostgresUrl):
        raise SettingError(
            f"database_url ({settings.source(config.DATABASE)}) is not PostgreSQL, which a worker needs; nothing was "
            "changed. Name one, such as postgresql://user@host/pisync; a receiver on SQLite works without a worker"
        )
    return place, settings


def _job(arguments: argparse.Namespace, settings: Settings, database: PostgresUrl) -> Job:
    begin_from = _begin_from(arguments.begin_from)
    if begin_from is not None and settings[own.AMQP_URL] is None:
        raise SettingError("--from says where handing on begins, and no broker is named: add amqp_url")
    return Job(
        database=database,
        amqp_url=settings[own.AMQP_URL],
        place=Place(
            exchange=settings[own.AMQP_EXCHANGE],
            queue=settings[own.AMQP_QUEUE],
            queue_type=settings[own.AMQP_QUEUE_TYPE],
        ),
        consumer=settings[own.CONSUMER],
        message_events=settings[own.MESSAGE_EVENTS],
        alert_urls=settings[own.ALERT_URLS],
        rules=Rules(
            quiet_hours=settings[own.QUIET_HOURS],
            zone=settings[own.TIME_ZONE],
            digest_over=settings[own.DIGEST_OVER],
            digest_window=settings[own.DIGEST_WINDOW],
            digest_every=settings[own.DIGEST_EVERY],
        ),
        metrics_address=settings[own.METRICS_ADDRESS],
        once=arguments.once,
        begin_from=begin_from,
    )


def _begin_from(value: str | None) -> int | str | None:
    if value is None or value == NOW:
        return value
    if not (value.isascii() and value.isdecimal() and 1 <= int(value) < 2**63):
        raise SettingError(f"--from {value!r}: not an event's id, which is 1 or more, nor `{NOW}`")
    return int(value)
