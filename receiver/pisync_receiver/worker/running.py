"""One worker, put together: its duties side by side, until a signal or until nothing is left."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from pisync_common.backoff import Backoff, Uniform
from pisync_receiver.errors import ReceiverError, Unavailable
from pisync_receiver.logs import fields
from pisync_receiver.store.postgres.transactions import Database
from pisync_receiver.worker.alerts.planner import Planner
from pisync_receiver.worker.alerts.sender import Sender
from pisync_receiver.worker.alerts.services import AppriseService
from pisync_receiver.worker.command import NOW, Job
from pisync_receiver.worker.duty import Duty
from pisync_receiver.worker.feed import Feed
from pisync_receiver.worker.metrics import WorkerMetrics
from pisync_receiver.worker.publishing import Publishing
from pisync_receiver.worker.rabbitmq import RabbitPublisher
from pisync_receiver.worker.settings import Address
from pisync_receiver.worker.stopping import Stopping
from pisync_receiver.worker.upkeep import Upkeep

log = logging.getLogger(__name__)

_SOON: Final = (1.0, 60.0)
"""Seconds, first and last, between tries of what stands close by: PostgreSQL, the broker."""
_LATER: Final = (5.0, 900.0)
"""Likewise for services of others."""


class NotAllDone(ReceiverError):
    """`--once` left something for the next time."""

    code = "not_all_done"


class CannotListen(ReceiverError):
    """The metrics' address cannot be had."""

    code = "cannot_listen"


def run(job: Job, *, now_ms: Callable[[], int], random: Uniform) -> None:
    """Do the job. Raises SchemaMismatch, MissingExtra, SettingError or CannotListen at the start, NotAllDone where it
    was to be done once and was not."""
    _quieten()
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = WorkerMetrics(registry)
    with _answering(job.metrics_address, registry):
        asyncio.run(_Worker(job, metrics, now_ms, random).work())


class _Worker:
    def __init__(self, job: Job, metrics: WorkerMetrics, now_ms: Callable[[], int], random: Uniform) -> None:
        self._job = job
        self._metrics = metrics
        self._now_ms = now_ms
        self._random = random
        self._stopping = Stopping()
        self._closing = AsyncExitStack()

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.ask)
        async with self._closing:
            feed = Feed(self._database(), self._job.consumer, now_ms=self._now_ms)
            duties = self._duties(feed)
            await self._prepare(feed)
            log.info("started", extra=fields(duties=[duty.name for duty in duties]))
            await (_once(duties) if self._job.once else _together(duties))
        log.info("stopped")

    async def _prepare(self, feed: Feed) -> None:
        """Check the schema, and stand where handing on begins."""
        database = self._database()

        async def ready() -> float:
            await database.check()
            if self._job.begin_from is not None:
                first = None if self._job.begin_from == NOW else int(self._job.begin_from)
                position = await feed.begin_from(first)
                log.info("handing on begins anew", extra=fields(after=position, consumer=self._job.consumer))
            elif self._job.amqp_url is not None:
                await feed.begin()
            await database.close()
            return 1.0

        if self._job.once:
            await ready()
        else:
            await self._duty("start", ready).run_until_it_works()

    def _duties(self, feed: Feed) -> list[Duty]:
        duties = []
        if self._job.amqp_url is not None:
            publisher = RabbitPublisher(self._job.amqp_url, self._job.place, connected=self._metrics.connected)
            self._closing.push_async_callback(publisher.close)
            publishing = Publishing(feed, publisher, metrics=self._metrics, message_events=self._job.message_events)
            duties.append(self._duty("publish", publishing.step))
        services = [AppriseService(url, position) for position, url in enumerate(self._job.alert_urls, 1)]
        planner = Planner(
            self._database(),
            [service.target for service in services],
            rules=self._job.rules,
            now_ms=self._now_ms,
            metrics=self._metrics,
        )
        duties.append(self._duty("alerts", planner.step))
        for service in services:
            sender = Sender(self._database(), service, now_ms=self._now_ms, metrics=self._metrics)
            duties.append(self._duty(f"send to {service.name}", sender.step, _LATER))
        duties.append(self._duty("upkeep", Upkeep(self._database(), now_ms=self._now_ms).step))
        return duties

    def _duty(self, name: str, step: Callable[[], Awaitable[float]], waits: tuple[float, float] = _SOON) -> Duty:
        backoff = Backoff(base=waits[0], cap=waits[1], random=self._random)
        return Duty(name, step, backoff=backoff, stopping=self._stopping)

    def _database(self) -> Database:
        database = Database(self._job.database)
        self._closing.push_async_callback(database.close)
        return database


async def _together(duties: Sequence[Duty]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for duty in duties:
                group.create_task(duty.run())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several


async def _once(duties: Sequence[Duty]) -> None:
    left = []
    for duty in duties:
        try:
            await duty.run_once()
        except Unavailable as error:
            left.append(str(error))
    if left:
        raise NotAllDone("; ".join(left))


@contextmanager
def _answering(address: Address | None, registry: CollectorRegistry) -> Iterator[None]:
    """Answer /metrics inside the block, in a thread."""
    if address is None:
        yield
        return
    try:
        server, thread = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {address.host} port {address.port}: {error.strerror or error}; nothing was changed; "
            "stop what uses it, or choose another with --metrics-address"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _quieten() -> None:
    """Other libraries' lines may hold URLs, and URLs hold secrets; what matters of them our own lines say."""
    for name in ("aio_pika", "aiormq", "apprise", "psycopg", "requests", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
