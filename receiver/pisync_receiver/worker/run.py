"""Run one worker until a signal, or until everything is published."""

import argparse
import asyncio
import logging
import random
import signal
from collections.abc import Mapping
from typing import TextIO

from pisync_common.backoff import Backoff
from pisync_common.errors import SettingError
from pisync_common.times import now_ms
from pisync_receiver import config, logs
from pisync_receiver.background import AGAIN, Shutdown, repeat
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.transactions import Database
from pisync_receiver.worker.publishing import NOW, Publishing
from pisync_receiver.worker.rabbitmq import RabbitPublisher

log = logging.getLogger(__name__)


def work(arguments: argparse.Namespace, environ: Mapping[str, str], *, err: TextIO) -> None:
    """Carry out the command. Raises SettingError, SchemaMismatch or MissingExtra; with `--once` also Unavailable if
    something is left to publish."""
    settings = config.settings_from(arguments, environ)
    database, amqp_url = settings[config.DATABASE], settings[config.AMQP_URL]
    if not isinstance(database, PostgresUrl):
        raise SettingError(
            f"database_url ({settings.source(config.DATABASE)}) is not PostgreSQL, which a worker needs; nothing was "
            "changed. Set it, such as postgresql://user@host/pisync; a receiver on SQLite runs without a worker"
        )
    if amqp_url is None:
        raise SettingError("amqp_url is not set, so there is no RabbitMQ to publish to; nothing was changed")
    start = _start(arguments.start_from)
    logs.configure(settings[config.LOG_LEVEL], err)
    for name in ("aio_pika", "aiormq", "psycopg"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their lines may hold URLs, and URLs hold passwords
    publisher = RabbitPublisher(
        amqp_url,
        exchange=settings[config.AMQP_EXCHANGE],
        queue=settings[config.AMQP_QUEUE],
        queue_type=settings[config.AMQP_QUEUE_TYPE],
    )
    publishing = Publishing(
        Database(database),
        publisher,
        consumer=settings[config.CONSUMER],
        now_ms=now_ms,
        start=start,
        message_events=settings[config.MESSAGE_EVENTS],
    )
    asyncio.run(_run(publishing, once=arguments.once))


async def _run(publishing: Publishing, *, once: bool) -> None:
    """Publish until SIGTERM or SIGINT; finish the page in progress then."""
    shutdown = Shutdown()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, shutdown.set)
    try:
        if once:
            while not shutdown.is_set() and await publishing.step() == AGAIN:
                pass
        else:
            backoff = Backoff(base=1.0, cap=60.0, random=random.uniform)
            await repeat("publish", publishing.step, backoff=backoff, shutdown=shutdown)
    finally:
        await publishing.close()
    log.info("stopped")


def _start(value: str | None) -> int | str | None:
    if value is None or value == NOW:
        return value
    if not (value.isascii() and value.isdecimal() and 1 <= int(value) < 2**63):
        raise SettingError(f"--from {value!r} is neither an event's id (1 or more) nor `{NOW}`")
    return int(value)
