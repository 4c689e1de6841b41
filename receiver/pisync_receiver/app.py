"""The composition root: one receiver, put together the same way for `serve`, for commands, tests and benchmarks."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.types import Receive, Scope, Send

from pisync_common.backoff import Backoff
from pisync_common.times import now_ms as wall_clock_ms
from pisync_receiver import api, window
from pisync_receiver.background import Shutdown, repeat
from pisync_receiver.cache import TTL_S, Cache, MemoryStorage, RedisStorage, RedisUrl
from pisync_receiver.domain.fleet import Criteria
from pisync_receiver.erasing import Eraser
from pisync_receiver.errors import MissingExtra, Overloaded, StoreUnusable
from pisync_receiver.http.auth import EndedTokens, Gate, TokenDirectory
from pisync_receiver.http.edge import Edge, Router, refuse_busy
from pisync_receiver.http.forwarded import Networks
from pisync_receiver.http.oidc import IdentityProvider, OidcSettings
from pisync_receiver.http.openapi import make_documents
from pisync_receiver.http.rates import device_rates
from pisync_receiver.http.request import LOCAL, BodyLimits, BodyReader, Services, announcement
from pisync_receiver.http.routing import Route
from pisync_receiver.http.sessions import Sessions
from pisync_receiver.intake import Intake, IntakeLimits
from pisync_receiver.logs import JsonLines
from pisync_receiver.metrics import Census, Metrics
from pisync_receiver.store import Store

READY_S: Final = 5.0
"""How long /readyz waits for a durable write before it answers 503."""
FOLD_S: Final = 5.0
"""How often what groups added is brought into the daily sums, where no one reads them."""
SILENT_AFTER_S: Final = 7 * 86_400.0
EXPORTS: Final = 8
"""Exports under way in one process; each holds a page of events."""


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """What a deployment may choose."""

    auth: bool = True
    """False lets anyone do anything; the caller has made sure that only loopback can reach the app."""
    body: BodyLimits = field(default_factory=BodyLimits)
    intake: IntakeLimits = field(default_factory=IntakeLimits)
    device_rate: int = 0
    """Calls a second of one device; 0 for no limit."""
    cache_ttl_s: float = TTL_S
    """The longest that a fleet-wide answer is kept; 0 for none."""
    redis: RedisUrl | None = None
    redis_space: str = ""
    """Tells the answers of this database from those of another in the same Redis."""
    trusted_proxies: Networks = ()
    """Gateways that may name the caller's address."""
    announce_url: str | None = None
    """The address that devices are asked to use."""
    oidc: OidcSettings | None = None
    """The identity provider whose accounts sign in to the pages."""
    erasures_file: Path | None = None
    """Where erasures are remembered outside the database."""
    pages: bool = True
    """Whether it has pages for people; making them takes longer than most commands."""
    public_url: str | None = None
    """The address at which people and devices reach the receiver."""
    silent_after_s: float = SILENT_AFTER_S
    """When a device counts as silent, where its site has no time of its own."""


class Receiver:
    """One receiver's parts. Made by `create`; answers inside `running()`."""

    def __init__(self, *, app: Edge, busy: Edge, services: Services, drain: Callable[[], None]) -> None:
        self.app = app
        self.busy = busy
        """Answers on connections too many."""
        self.services = services
        self.drain = drain
        """Has /readyz say no from now on, while everything is still answered."""

    @classmethod
    def create(
        cls,
        store: Store,
        settings: AppSettings,
        *,
        access_log: JsonLines | None = None,
        extra_routes: Sequence[Route] = (),
        metrics: Metrics | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
        request_prefix: str | None = None,
    ) -> "Receiver":
        """Put a receiver together around `store`, which the caller closes. Raises MissingExtra.

        `extra_routes` come beside the table's own (a benchmark's yardstick, say).
        """
        metrics = metrics or Metrics(_registry())
        intake = Intake(store, limits=settings.intake, clock=clock, random=random, watcher=metrics)
        tokens = TokenDirectory(store, clock=clock)
        readiness = _Readiness(intake)
        silent_after_ms = round(settings.silent_after_s * 1000)
        census = Census(store, metrics, lambda: Criteria(now_ms=now_ms(), silent_after_ms=silent_after_ms), clock=clock)
        routes = [*extra_routes, *api.table()]
        services = Services(
            store=store,
            intake=intake,
            tokens=tokens,
            sessions=Sessions(tokens, intake, required=settings.auth, now_ms=now_ms, clock=clock, random=random),
            identity_provider=_identity_provider(settings.oidc, now_ms, clock),
            bodies=BodyReader(settings.body),
            cache=_cache(settings, clock),
            metrics=metrics,
            documents=make_documents(routes, auth=settings.auth),
            ready=readiness.check,
            census=census.take,
            eraser=Eraser(store, settings.erasures_file, now_ms=now_ms),
            exports=asyncio.Semaphore(EXPORTS),
            now_ms=now_ms,
            silent_after_ms=silent_after_ms,
            announcement=announcement(settings.announce_url),
            trusted_proxies=settings.trusted_proxies,
            public_url=settings.public_url,
        )
        rates = device_rates(settings.device_rate, clock=clock, random=random) if settings.device_rate else None
        gate = Gate(
            tokens, required=settings.auth, now_ms=now_ms, on_ended=EndedTokens(intake.submit).note, rates=rates
        )
        edge = partial(
            Edge,
            services=services,
            access_log=access_log,
            request_prefix=request_prefix,
        )
        api_calls = Router(routes, gate)
        every = Router([*routes, *window.table(api_calls)], gate) if settings.pages else api_calls
        return cls(
            app=edge(every.answer),
            busy=edge(refuse_busy, extra=((b"connection", b"close"),)),
            services=services,
            drain=readiness.drain,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Finish erasing before anything is answered, and keep the daily sums up to date. At the end, finish what the
        intake took and let go of everything but the store."""
        shutdown = Shutdown()
        backoff = Backoff(base=1.0, cap=60.0, random=random.uniform)
        folding: asyncio.Task[None] | None = None
        try:
            await self.services.eraser.resume()
            folding = asyncio.create_task(repeat("daily sums", self._fold, backoff=backoff, shutdown=shutdown))
            yield
        finally:
            shutdown.set()
            if folding is not None:
                await folding
            await self.services.intake.close()
            await self.services.cache.aclose()

    async def _fold(self) -> float:
        await self.services.store.fold_sums()
        return FOLD_S

    async def local(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app for connections through the receiver's own Unix socket: their caller is its owner."""
        scope[LOCAL] = True
        await self.app(scope, receive, send)


class _Readiness:
    """Finds out whether the receiver can store by storing something; for all who ask at once, it writes once."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._asked: asyncio.Task[None] | None = None
        self._draining = False

    def drain(self) -> None:
        self._draining = True

    async def check(self) -> None:
        """Return when a durable write has succeeded. Raises StoreUnusable or Overloaded, whatever the store does."""
        if self._draining:
            raise Overloaded("the receiver is about to stop; ask another", retry_after=1)
        asked = self._asked  # while this waits, another caller may begin the next
        if asked is None or asked.done():
            asked = self._asked = asyncio.create_task(self._intake.ready())
            asked.add_done_callback(_retrieve)
        done, _ = await asyncio.wait((asked,), timeout=READY_S)
        if not done:
            raise StoreUnusable(f"no durable write within {READY_S:g} s")
        if asked.cancelled():
            raise Overloaded("the receiver is about to stop; ask another", retry_after=1)
        match asked.exception():
            case None:
                return
            case Overloaded() | StoreUnusable() as error:
                raise error
            case error:
                raise StoreUnusable(f"a durable write failed ({type(error).__name__})") from error


def _retrieve(task: asyncio.Task[None]) -> None:
    """Keep asyncio from logging an error as lost that came after all callers had given up."""
    if not task.cancelled():
        task.exception()


def _identity_provider(
    settings: OidcSettings | None, now_ms: Callable[[], int], clock: Callable[[], float]
) -> IdentityProvider | None:
    if settings is None:
        return None
    try:
        from pisync_receiver.http.openid import OpenIdConnect  # libraries that only this needs
    except ImportError as error:
        raise MissingExtra("oidc", error) from error
    return OpenIdConnect(settings, now_ms=now_ms, clock=clock)


def _cache(settings: AppSettings, clock: Callable[[], float]) -> Cache:
    if settings.redis is None:
        return Cache(MemoryStorage(clock=clock), clock=clock, ttl_s=settings.cache_ttl_s)
    storage = RedisStorage(settings.redis, space=settings.redis_space, clock=clock)
    return Cache(storage, clock=clock, ttl_s=settings.cache_ttl_s)


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry
