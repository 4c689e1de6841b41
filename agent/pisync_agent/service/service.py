"""`pisync run`: the one process that writes the outbox, takes records from apps, and delivers.

Two threads. The main thread's event loop serves the Unix socket, signals, the kernel's events about links, and a
timer; it commits what apps have sent in groups, and never waits for the network. The other thread delivers (see
`scheduler`).

`sync_once` is the same for `pisync sync` where no service runs: one sync run, and the socket served meanwhile, so that
apps can record and a second `pisync sync` joins in.
"""

import asyncio
import gc
import logging
import math
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pisync_agent.config as config
from pisync_agent.clock import Clock, SystemClock
from pisync_agent.enrollment.zero_touch import ZeroTouch
from pisync_agent.errors import AgentError, NotEnrolled, StoreUnusable
from pisync_agent.outbox import files, space
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.service import protocol, views
from pisync_agent.service.decoding import unexpected
from pisync_agent.service.lock import writer_lock
from pisync_agent.service.restraints import Restraints
from pisync_agent.service.schedule import START_S, Schedule
from pisync_agent.service.scheduler import Finished, Scheduler
from pisync_agent.service.server import LocalServer, Request, record
from pisync_agent.service.sync_runner import SyncRunner
from pisync_agent.service.waiters import Waiters
from pisync_agent.service.ways_in import open_ways_in
from pisync_agent.service.write_faults import WriteFaults, has_room
from pisync_agent.sync.connectivity import LinkWatch
from pisync_agent.sync.progress import Progress
from pisync_agent.sync.retry import RetryPolicy
from pisync_common import __version__
from pisync_common.limits import SEQ_MAX
from pisync_common.settings import Settings
from pisync_common.systemd import notify, watchdog_interval
from pisync_common.times import now_ms

log = logging.getLogger(__name__)

TICK_S: Final = 15.0
"""How often the service checks itself, unless systemd's watchdog asks for more."""
FLUSH_S: Final = 1.0
"""How long answers may take to leave when the service stops; and then the outbox, to be closed."""

STOPPED: Final = "the service has stopped; everything is kept, and delivered when it runs again"

Show = Callable[[Mapping[str, Any]], None]


class Service:
    """See the module. For one use: `run_forever` or `sync_once`, in the main thread."""

    _loop: asyncio.AbstractEventLoop
    _ending: asyncio.Event
    _idle: asyncio.Event
    _outbox: Outbox
    _runner: SyncRunner
    _scheduler: Scheduler
    _server: LocalServer

    def __init__(self, home: Path, *, settings: Settings, clock: Clock | None = None) -> None:
        self._home = home
        self._settings = settings
        self._clock = clock or SystemClock()
        self._kind = ""
        self._waiters = Waiters()
        self._write_faults = WriteFaults(monotonic=self._clock.monotonic, now_ms=now_ms)
        self._fault: AgentError | None = None
        self._interrupted = False
        self._own: tuple[int, Show] | None = None
        self._own_end: Finished | None = None
        self._route: frozenset[str] = frozenset()
        self._run_until = math.inf
        self._zero_touch: ZeroTouch | None = None

    def run_forever(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises LockHeld that names the holder, StoreUnusable or OutboxFull."""
        asyncio.run(self._run_forever())

    def sync_once(self, show: Show, *, max_s: float = math.inf) -> dict[str, Any]:
        """Make one sync run in this process; return its result as JSON. After `max_s` it sends no further batch.

        Raises LockHeld, NotEnrolled, KeyboardInterrupt, or an error of the outbox.
        """
        return asyncio.run(self._sync_once(show, max_s))

    async def _run_forever(self) -> None:
        async with self._started("service") as stack:
            self._watch_links(stack)
            self._enroll_unattended(stack)
            gc.collect()
            gc.freeze()  # objects that live as long as the process need not be examined again
            log.info("started: pisync %s, home %s, stream %s", __version__, self._home, self._outbox.stream)
            if not self._runner.enrolled:
                log.warning(self._runner.enrollment().detail)
            notify("READY=1")
            await self._ending.wait()
            await self._stop()
        if self._fault is not None:
            raise self._fault

    async def _sync_once(self, show: Show, max_s: float) -> dict[str, Any]:
        async with self._started("sync"):
            if not self._runner.enrolled:
                raise NotEnrolled(self._runner.enrollment().detail)
            self._run_until = self._clock.monotonic() + max_s
            self._own = (self._scheduler.request(), show)
            await self._ending.wait()
            await self._stop()
        if self._fault is not None:
            raise self._fault
        if self._interrupted or self._own_end is None:
            raise KeyboardInterrupt
        if self._own_end.result is None:
            raise self._own_end.error or AgentError(STOPPED)
        return self._own_end.result.fields()

    # From start to stop

    @asynccontextmanager
    async def _started(self, kind: str) -> AsyncIterator[AsyncExitStack]:
        self._kind = kind
        self._loop = asyncio.get_running_loop()
        self._ending, self._idle = asyncio.Event(), asyncio.Event()
        async with AsyncExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._loop.add_signal_handler(number, self._on_signal, number)
                stack.callback(self._loop.remove_signal_handler, number)
            stack.enter_context(writer_lock(files.lock(self._home)))
            self._outbox = open_outbox(self._home, limits=config.limits(self._settings), clock=self._clock)
            stack.callback(self._outbox.close)
            self._runner = SyncRunner(
                home=self._home,
                outbox=self._outbox,
                clock=self._clock,
                stopping=lambda: self._scheduler.stopping or self._clock.monotonic() >= self._run_until,
                max_rate=self._settings[config.MAX_RATE],
            )
            self._runner.reload()
            self._scheduler = self._new_scheduler()
            self._server = LocalServer(path=files.socket(self._home), serve=self._serve, stamp=self._clock.stamp)
            stack.callback(self._server.close)
            await self._server.start()
            self._scheduler.start()
            stack.callback(self._runner.link_lost)  # a request that outlived the stop timeout
            stack.callback(self._scheduler.stop)
            if kind == "service":
                open_ways_in(
                    stack, self._home, self._settings, server=self._server, outbox=self._outbox, status=self._status
                )
            stack.callback(asyncio.create_task(self._tick_forever()).cancel)
            yield stack

    def _new_scheduler(self) -> Scheduler:
        settings = self._settings
        return Scheduler(
            run=self._runner.run,
            schedule=Schedule(
                now=self._clock.monotonic(),
                delay=settings[config.SYNC_DELAY],
                interval=settings[config.SYNC_INTERVAL],
                first=min(settings[config.SYNC_DELAY], START_S)
                if self._kind == "service"
                else settings[config.SYNC_INTERVAL],
                metered_delay=settings[config.METERED_DELAY],
            ),
            wait_policy=RetryPolicy(base=settings[config.RETRY_BASE], cap=settings[config.RETRY_CAP]),
            notify=self._notify,
            monotonic=self._clock.monotonic,
            waiting=lambda: self._outbox.state().waiting,
            enrolled=self._runner.enrolled,
            restraints=Restraints.from_settings(settings, self._clock) if self._kind == "service" else Restraints(),
        )

    async def _stop(self) -> None:
        """Accept no new connections, let the batch in flight end, answer waiting requests; serve others meanwhile."""
        patience = self._settings[config.STOP_TIMEOUT]
        notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round((patience + 2 * FLUSH_S) * 1e6)}")
        log.info("stopping")
        self._server.stop_listening()
        self._scheduler.stop()
        try:
            async with asyncio.timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            log.warning("a request was still in flight; its events are sent again")
        self._waiters.answer_all(protocol.error_answer(protocol.Stopped(STOPPED)))
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self._server.flushed()

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload()
        elif self._ending.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second time: end at once
        else:
            self._interrupted = True
            self._ending.set()

    # Self-checks

    async def _tick_forever(self) -> None:
        while True:
            watchdog = watchdog_interval()
            self._tick()
            if watchdog is not None and not self._ending.is_set():
                notify("WATCHDOG=1")
            await asyncio.sleep(min(TICK_S, watchdog / 3 if watchdog else TICK_S))

    def _tick(self) -> None:
        """Check the file, and that it can be written. `write_faults` says why a failed write is no end."""
        if not self._is_in_place():
            self._fault = StoreUnusable(
                f"{self._outbox.path} was removed or replaced while the service had it open; the service stops, and "
                "opens the file in place when it starts again"
            )
            self._ending.set()
        elif self._write_faults.is_check_due(read_only=space.is_read_only(self._home)):
            try:
                self._outbox.check_writable()
                state = self._outbox.state()
            except AgentError as error:
                self._write_faults.note(error)
            else:
                self._write_faults.note_check(has_room=has_room(state))

    def _is_in_place(self) -> bool:
        """Return whether the open file is the one at its path, or the disk cannot say."""
        if self._outbox.is_current():
            return True
        with suppress(AgentError):
            self._outbox.state()  # ends after the agent's own exchange of files
        try:
            self._outbox.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return self._outbox.is_current()

    # Links

    def _watch_links(self, stack: AsyncExitStack) -> None:
        try:
            watch = stack.enter_context(LinkWatch())
        except OSError as error:
            log.info("cannot watch netlink link events (%s); polling instead", error)
            return
        self._route = self._runner.route()
        self._loop.add_reader(watch, self._on_link_event, watch)
        stack.callback(self._loop.remove_reader, watch)

    def _on_link_event(self, watch: LinkWatch) -> None:
        watch.drain()
        before, self._route = self._route, self._runner.route()
        if before - self._route:
            self._runner.link_lost()
        if self._route and self._route != before:
            self._scheduler.link_up()
            if self._zero_touch is not None:
                self._zero_touch.link_up()

    def _enroll_unattended(self, stack: AsyncExitStack) -> None:
        """Use an enrollment file that waits; `zero_touch` says how."""

        def enrolled() -> None:
            with suppress(RuntimeError):  # the service ends
                self._loop.call_soon_threadsafe(self._reload)

        policy = RetryPolicy(base=self._settings[config.RETRY_BASE], cap=self._settings[config.RETRY_CAP])
        self._zero_touch = ZeroTouch.with_client(
            self._home, self._runner.here, clock=self._clock, policy=policy, enrolled=enrolled
        )
        stack.callback(self._zero_touch.stop)
        self._zero_touch.wake()

    # Requests

    def _serve(self, requests: Sequence[Request]) -> None:
        """Record the events of all requests in one commit; answer the others one by one."""
        recordings = [request for request in requests if request.events is not None]
        if recordings:
            boottime_ms = self._clock.stamp().boottime_ms
            record(self._outbox, recordings, boottime_ms=boottime_ms, note=self._write_faults.note)
            self._scheduler.recorded(sum(len(request.events or ()) for request in recordings))
        for request in requests:
            if request.events is None:
                try:
                    self._serve_one(request)
                except AgentError as error:
                    request.answer(protocol.error_answer(error))
                except Exception as error:
                    request.answer(protocol.error_answer(unexpected(error)))

    def _serve_one(self, request: Request) -> None:
        match request.do:
            case protocol.HELLO:
                request.answer({"hello": {"protocol": protocol.VERSION, "agent": __version__}})
            case protocol.STATUS:
                request.answer({"status": self._status()})
            case protocol.READ:
                request.answer({"read": views.answer(self._home, self._runner.identity, request.message)})
            case protocol.SYNC:
                self._join(request)
            case protocol.REQUEUE:
                request.answer({"seq": self._requeue(request.message)})
            case protocol.RELOAD:
                self._reload()
                request.answer({"reloaded": True})
            case _:
                raise protocol.BadMessage(request.fault or f"unknown message {request.do[:40]!r}")

    def _status(self) -> dict[str, object]:
        about = {
            "pid": os.getpid(),
            "kind": self._kind,
            "version": __version__,
            "enrolled": self._runner.enrolled,
            "enrollment": asdict(self._runner.enrollment()),
            "joined": len(self._waiters),
            "write_fault": self._write_faults.fields(),
            "link": self._runner.link(),
            "clock_synced": self._clock.stamp().clock_synced,
        }
        return about | self._scheduler.live().fields(self._clock.monotonic())

    def _join(self, request: Request) -> None:
        """Answer when a run is over that began after the request."""
        if not self._runner.enrolled:
            raise NotEnrolled(self._runner.enrollment().detail)
        if self._ending.is_set():
            raise protocol.Stopped(STOPPED)
        self._waiters.add(request, self._scheduler.request())

    def _requeue(self, message: Mapping[str, Any]) -> int:
        seq = message.get("seq")
        if type(seq) is not int or not 1 <= seq <= SEQ_MAX:
            raise protocol.BadMessage("requeue needs the seq of a dead letter")
        again = self._outbox.requeue(seq)
        self._scheduler.recorded()
        return again

    def _reload(self) -> None:
        """Read the identity again, and use it from now on."""
        self._runner.reload()
        log.info("the identity was read again: %s", "enrolled" if self._runner.enrolled else "not enrolled")
        self._scheduler.set_enrolled(self._runner.enrolled)
        if not self._runner.enrolled:
            self._waiters.answer_all(protocol.error_answer(NotEnrolled(self._runner.enrollment().detail)))
        if self._zero_touch is not None:
            self._zero_touch.wake()

    # Sync runs

    def _notify(self, news: Progress | Finished | None) -> None:
        """Take the news of a run, in the scheduler's thread."""
        if isinstance(news, Finished) and self._runner.take_request():
            self._scheduler.request()
        with suppress(RuntimeError):  # the loop has ended: a run outlived the stop timeout
            self._loop.call_soon_threadsafe(self._on_news, news)

    def _on_news(self, news: Progress | Finished | None) -> None:
        match news:
            case None:
                self._idle.set()
            case Finished():
                self._on_finished(news)
            case Progress():
                if self._own is not None:
                    self._own[1](news.fields())
                self._waiters.show(news)

    def _on_finished(self, finished: Finished) -> None:
        self._waiters.finish(finished)
        if self._own is not None and self._own[0] <= finished.covers:
            self._own, self._own_end = None, finished
            self._ending.set()
