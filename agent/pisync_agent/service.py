"""`pisync run`: the one process that writes the outbox, takes records from apps, and delivers.

Two threads. The main one turns one loop over the Unix socket, signals, the kernel's notices about links, and a timer;
what apps have sent by then is recorded in one commit, and then each of them is answered. The other one delivers (see
`syncer`). Nothing in the loop waits for the network.

`sync_once` is the same for `pisync sync` where no service runs: one sync run, and the socket served meanwhile, so that
apps can record and a second `pisync sync` joins in.
"""

import gc
import logging
import os
import selectors
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from pisync_agent import config, local, requests
from pisync_agent.agenda import Agenda
from pisync_agent.clock import Clock, SystemClock
from pisync_agent.connectivity import LinkWatch
from pisync_agent.delivery import Progress
from pisync_agent.errors import AgentError, NotEnrolled, StoreUnusable
from pisync_agent.holder import writer_lock
from pisync_agent.outbox import Outbox, files, open_outbox
from pisync_agent.peers import LocalServer, Peer
from pisync_agent.policy import RetryPolicy
from pisync_agent.requests import Request
from pisync_agent.runner import Runner, progress_fields, result_fields
from pisync_agent.syncer import Finished, Syncer, describe
from pisync_agent.systemd import notify, watchdog_interval
from pisync_agent.wakeup import Wakeup
from pisync_common import __version__
from pisync_common.settings import Settings

log = logging.getLogger(__name__)

TICK_S: Final = 15.0
"""How often the loop looks after itself, where systemd does not want to hear from it more often."""
FLUSH_S: Final = 2.0
"""How long answers may take to leave when the service stops."""
AWAKE_S: Final = 0.0002
"""How long the loop stays awake after an answer."""
SWITCH_S: Final = 0.0005
"""A record must not wait long for a sync thread that is busy computing."""

NOT_ENROLLED: Final = (
    "this device is not enrolled: nothing can be delivered, everything is kept. "
    "Ask an administrator for a code, then: pisync enroll URL --code CODE"
)
STOPPED: Final = "the service has stopped; everything is kept, and delivered when it runs again"

Show = Callable[[Mapping[str, Any]], None]


class Service:
    """See the module. Made for one use: `run_forever` or `sync_once`, in the main thread."""

    _outbox: Outbox
    _runner: Runner
    _syncer: Syncer
    _server: LocalServer

    def __init__(self, home: Path, *, settings: Settings, clock: Clock | None = None) -> None:
        self._home = home
        self._settings = settings
        self._clock = clock or SystemClock()
        self._selector = selectors.DefaultSelector()
        self._wakeup = Wakeup(self._selector, self._woken)
        self._told: deque[Progress | Finished | None] = deque()
        self._waiters: list[tuple[Peer, int]] = []
        self._kind = ""
        self._ends = False
        self._identity_changed = False
        self._fault: AgentError | None = None
        self._own: tuple[int, Show] | None = None
        self._own_end: Finished | None = None
        self._linked = False
        self._next_tick = 0.0
        self._served_at = 0.0

    def run_forever(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises LockHeld that says by whom, StoreUnusable or OutboxFull."""
        with self._started("service"), self._links_watched():
            gc.collect()
            gc.freeze()  # what lives as long as the process need not be looked at again
            log.info("started: pisync %s, home %s, stream %s", __version__, self._home, self._outbox.stream)
            if not self._runner.enrolled:
                log.warning(NOT_ENROLLED)
            notify("READY=1")
            self._loop(lambda: not self._ends)
            self._stop()
        if self._fault is not None:
            raise self._fault

    def sync_once(self, show: Show) -> dict[str, Any]:
        """One sync run by this process: its result as JSON. Raises LockHeld, NotEnrolled, KeyboardInterrupt, or what
        the outbox met."""
        with self._started("sync"):
            if not self._runner.enrolled:
                raise NotEnrolled(NOT_ENROLLED)
            self._own = (self._syncer.ask(), show)
            self._loop(lambda: not self._ends and self._own_end is None)
            self._stop()
        if self._fault is not None:
            raise self._fault
        if self._ends or self._own_end is None:
            raise KeyboardInterrupt
        if self._own_end.result is None:
            raise self._own_end.error or AgentError(STOPPED)
        return result_fields(self._own_end.result)

    # From start to stop

    @contextmanager
    def _started(self, kind: str) -> Iterator[None]:
        self._kind = kind
        switch = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        with ExitStack() as stack:
            stack.callback(sys.setswitchinterval, switch)
            stack.callback(self._selector.close)
            stack.callback(self._wakeup.close)
            stack.enter_context(self._wakeup.signals(self._signalled, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
            stack.enter_context(writer_lock(files.lock(self._home)))
            self._outbox = open_outbox(self._home, limits=config.limits(self._settings), clock=self._clock)
            stack.callback(self._outbox.close)
            self._runner = Runner(self._home, outbox=self._outbox, clock=self._clock, stopping=self._stopping)
            self._syncer = self._made_syncer()
            self._server = LocalServer(files.socket(self._home), self._selector, monotonic=self._clock.monotonic)
            stack.callback(self._server.close)
            self._syncer.start()
            stack.callback(self._syncer.stop)
            yield

    def _made_syncer(self) -> Syncer:
        settings = self._settings
        return Syncer(
            self._runner.run,
            agenda=Agenda(
                now=self._clock.monotonic(),
                delay=settings[config.SYNC_DELAY],
                interval=settings[config.SYNC_INTERVAL],
                first=settings[config.SYNC_DELAY] if self._kind == "service" else settings[config.SYNC_INTERVAL],
            ),
            wait_policy=RetryPolicy(base=settings[config.RETRY_BASE], cap=settings[config.RETRY_CAP]),
            tell=self._tell,
            monotonic=self._clock.monotonic,
            waiting=lambda: self._outbox.state().waiting,
            enrolled=self._runner.enrolled,
        )

    def _stop(self) -> None:
        """Take no new connections, let the batch in flight end, answer who waits; meanwhile serve who is connected."""
        notify("STOPPING=1")
        log.info("stopping")
        self._server.stop_listening()
        self._syncer.stop()
        deadline = self._clock.monotonic() + self._settings[config.STOP_TIMEOUT]
        self._loop(lambda: not self._syncer.ended and self._clock.monotonic() < deadline, until=deadline)
        if not self._syncer.ended:
            log.warning("a request was still under way; what it carried is sent again")
        self._woken()
        self._answer_waiters(None, local.error_answer(local.Stopped(STOPPED)))
        self._turn(0)
        deadline = self._clock.monotonic() + FLUSH_S
        self._loop(lambda: self._server.sending and self._clock.monotonic() < deadline, until=deadline)

    def _stopping(self) -> bool:
        return self._syncer.stopping

    def _signalled(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._identity_changed = True
        elif self._ends and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked for twice: now
        else:
            self._ends = True

    # The loop

    def _loop(self, going: Callable[[], bool], *, until: float | None = None) -> None:
        while going():
            now = self._clock.monotonic()
            if now >= self._next_tick:
                self._tick(now)
            wake = self._next_tick if until is None else min(self._next_tick, until)
            self._turn(max(0.0, wake - now))

    def _turn(self, timeout: float) -> None:
        for key, mask in self._ready(timeout):
            key.data(mask)
        while lines := self._server.take():
            self._serve(lines)
            self._served_at = self._clock.monotonic()

    def _ready(self, timeout: float) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready. For a moment after an answer it is awake and looks: who records one event after the other is
        served without the time it takes to wake up."""
        until = self._served_at + AWAKE_S
        while self._clock.monotonic() < until:
            if found := self._selector.select(0):
                return found
        return self._selector.select(timeout)

    def _tick(self, now: float) -> None:
        watched = watchdog_interval()
        self._next_tick = now + min(TICK_S, watched / 3 if watched else TICK_S)
        self._server.sweep()
        try:
            self._outbox.check_writable()
        except AgentError as error:
            log.error("the outbox cannot be written: %s", error)
            return
        if not self._outbox.is_current() and not self._is_swapped():
            self._fault = StoreUnusable(
                f"{self._outbox.path} was removed or replaced while the service had it open; the service stops, and "
                "opens what is there when it starts again"
            )
            self._ends = True
        elif watched:
            notify("WATCHDOG=1")

    def _is_swapped(self) -> bool:
        """Whether it was the agent itself that put another file in place: it is done when this transaction is."""
        try:
            self._outbox.check_writable()
        except AgentError:
            return True
        return self._outbox.is_current()

    def _woken(self) -> None:
        """Signals, or news of a sync run."""
        if self._identity_changed:
            self._identity_changed = False
            self._reload()
        while self._told:
            match self._told.popleft():
                case Finished() as finished:
                    self._finished(finished)
                case None:
                    pass
                case progress:
                    self._progressed(progress_fields(progress))

    def _tell(self, news: "Progress | Finished | None") -> None:
        """From the syncer's thread."""
        self._told.append(news)
        self._wakeup.wake()

    @contextmanager
    def _links_watched(self) -> Iterator[None]:
        try:
            watch = LinkWatch()
        except OSError as error:
            log.info("the kernel's notices about links cannot be had (%s); the timer does without", error)
            yield
            return
        with watch:
            self._linked = self._runner.link()
            self._selector.register(watch, selectors.EVENT_READ, lambda _: self._link_changed(watch))
            yield
            self._selector.unregister(watch)

    def _link_changed(self, watch: LinkWatch) -> None:
        watch.drain()
        before, self._linked = self._linked, self._runner.link()
        if self._linked and not before:
            self._syncer.link()

    # Requests

    def _serve(self, lines: Sequence[tuple[Peer, bytes]]) -> None:
        """Record what all of them bring in one commit; then answer each."""
        asked = [requests.read(line) for _, line in lines]
        recorded = requests.record(self._outbox, asked)
        if any(recorded):
            self._syncer.news()
        for (peer, _), request, answer in zip(lines, asked, recorded, strict=True):
            given = answer or self._answer(peer, request)
            if given is not None:
                self._server.answer(peer, given)

    def _answer(self, peer: Peer, request: Request) -> dict[str, object] | None:
        """The answer to anything but a record; None where it comes later."""
        try:
            match request.do:
                case local.STATUS:
                    return {"status": self._status()}
                case local.SYNC:
                    self._join(peer)
                    return None
                case local.REQUEUE:
                    return {"seq": self._requeue(request.message)}
                case local.RELOAD:
                    self._reload()
                    return {"reloaded": True}
                case _:
                    raise local.BadMessage("not a message that the agent knows")
        except AgentError as error:
            return local.error_answer(error)

    def _status(self) -> dict[str, object]:
        about = {
            "pid": os.getpid(),
            "kind": self._kind,
            "version": __version__,
            "enrolled": self._runner.enrolled,
            "joined": len(self._waiters),
        }
        return about | describe(self._syncer.live(), self._clock.monotonic())

    def _join(self, peer: Peer) -> None:
        if not self._runner.enrolled:
            raise NotEnrolled(NOT_ENROLLED)
        if self._ends:
            raise local.Stopped(STOPPED)
        self._waiters.append((peer, self._syncer.ask()))

    def _requeue(self, message: Mapping[str, Any]) -> int:
        seq = message.get("seq")
        if type(seq) is not int:
            raise local.BadMessage("requeue needs the seq of a dead letter")
        again = self._outbox.requeue(seq)
        self._syncer.news()
        return again

    def _reload(self) -> None:
        """Look at the identity again, and use it from now on."""
        self._runner.reload()
        log.info("the identity was read again: %s", "enrolled" if self._runner.enrolled else "not enrolled")
        self._syncer.enrolled(self._runner.enrolled)
        if not self._runner.enrolled:
            self._answer_waiters(None, local.error_answer(NotEnrolled(NOT_ENROLLED)))

    # Sync runs

    def _progressed(self, progress: Mapping[str, Any]) -> None:
        if self._own is not None:
            self._own[1](progress)
        for peer, _ in self._waiters:
            self._server.tell(peer, {"progress": progress})

    def _finished(self, finished: Finished) -> None:
        if finished.result is not None:
            self._answer_waiters(finished.covers, {"result": result_fields(finished.result)})
        else:
            error = finished.error or AgentError("the sync run ended without a result")
            self._answer_waiters(finished.covers, local.error_answer(error))
        if self._own is not None and self._own[0] <= finished.covers:
            self._own, self._own_end = None, finished

    def _answer_waiters(self, covers: int | None, answer: dict[str, object]) -> None:
        """Answer those who asked up to `covers`; all of them where it is None."""
        waiters, self._waiters = self._waiters, []
        for peer, ticket in waiters:
            if covers is None or ticket <= covers:
                self._server.answer(peer, answer)
            else:
                self._waiters.append((peer, ticket))
