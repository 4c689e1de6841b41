"""The thread that delivers: it waits until a sync run is due, makes it, and tries again as the policy says.

tenacity is the engine of the retries; its sleep is a wait on this module's condition, which new connectivity,
`pisync sync` and the end of the service cut short. New events do not: what the receiver asked for is kept.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from pisync_agent.agenda import Agenda, Due
from pisync_agent.errors import AgentError

if TYPE_CHECKING:
    from pisync_agent.delivery import Progress, SyncResult

log = logging.getLogger(__name__)

AFTER_FAULT_S = 60.0
"""The pause after an error that nobody foresaw."""


class Run(Protocol):
    """Makes one sync run; failures of delivery are in its result. Raises AgentError where the outbox fails."""

    def __call__(self, *, probe: bool, progress: "Callable[[Progress], None]") -> "SyncResult": ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A sync run is over: its result, or what kept it from being one, for all that asked up to `covers`."""

    result: "SyncResult | None"
    error: AgentError | None
    covers: int


Tell = Callable[["Progress | Finished | None"], None]
"""Takes news of a run, from the syncer's thread; None says that the thread has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """What the syncer is about."""

    running: bool
    due: Due | None
    failures: int
    """Failed runs since the last good one."""
    last_error: AgentError | None


class StartOver(Exception):
    """The wait between two tries ends, and with it the count of failures."""


class Stopped(Exception):
    """The service ends."""


class Syncer:
    """One thread. `ask`, `news`, `link`, `enrolled` and `stop` may be called from any thread."""

    def __init__(
        self,
        run: Run,
        *,
        agenda: Agenda,
        wait_policy: Callable[[RetryCallState], float],
        tell: Tell,
        monotonic: Callable[[], float],
        waiting: Callable[[], int],
        enrolled: bool,
    ) -> None:
        self._run = run
        self._waiting = waiting
        self._agenda = agenda
        self._policy = wait_policy
        self._tell = tell
        self._monotonic = monotonic
        self._enrolled = enrolled
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = False
        self._news = False
        self._asked = 0
        self._running_forced: bool | None = None
        self._failures = 0
        self._last_error: AgentError | None = None
        self._thread = threading.Thread(target=self._work, name="sync", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def stopping(self) -> bool:
        return self._stopping

    def stop(self) -> None:
        """Make no further run; the one under way ends after the batch in flight."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self, timeout: float) -> bool:
        """Whether the thread has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def ask(self) -> int:
        """A run, now; it is over when a `Finished` covers the returned number."""
        with self._changed:
            self._asked += 1
            if self._running_forced is None:
                self._agenda.ask()
            self._changed.notify_all()
            return self._asked

    def news(self) -> None:
        """Events were recorded."""
        if not self._news:
            with self._changed:
                self._news = True
                self._agenda.news(self._monotonic())
                self._changed.notify_all()

    def link(self) -> None:
        """A link has come up."""
        with self._changed:
            self._agenda.link(self._monotonic())
            self._changed.notify_all()

    def enrolled(self, enrolled: bool) -> None:
        """The identity has changed."""
        with self._changed:
            self._enrolled = enrolled
            if enrolled:
                self._agenda.ask()
            self._changed.notify_all()

    def live(self) -> Live:
        with self._changed:
            due = self._agenda.due() if self._enrolled and self._running_forced is None else None
            return Live(
                running=self._running_forced is not None,
                due=due,
                failures=self._failures,
                last_error=self._last_error,
            )

    # The thread

    @property
    def ended(self) -> bool:
        """Whether the thread makes no run any more."""
        return self._ended

    def _work(self) -> None:
        try:
            self._sync_on()
        finally:
            self._ended = True
            self._tell(None)

    def _sync_on(self) -> None:
        while not self._stopping:
            try:
                self._wait_until_due()
                self._sync()
            except StartOver:
                continue
            except Stopped:
                return
            except Exception as error:
                log.exception("a sync run met an error that nobody foresaw; PiSync goes on")
                self._finish_badly(AgentError(f"the sync run failed: {type(error).__name__}: {error}"))

    def _wait_until_due(self) -> None:
        with self._changed:
            while not self._stopping:
                seconds = self._agenda.due().at - self._monotonic() if self._enrolled else None
                if seconds is not None and seconds <= 0:
                    return
                self._changed.wait(seconds)
        raise Stopped

    def _sync(self) -> None:
        """Run; after a failure wait as the policy says and run again, until one succeeds."""
        retrying = Retrying(
            wait=self._policy,
            sleep=self._sleep,
            retry=retry_if_exception_type(AgentError),
            before_sleep=self._note_failure,
            reraise=True,
        )
        retrying(self._run_once)

    def _note_failure(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, AgentError)
        assert state.next_action is not None
        wait = state.next_action.sleep
        with self._changed:
            self._agenda.fail(
                self._monotonic(),
                wait=wait,
                retry_after=getattr(error, "retry_after", None),
                why=_why(error, state.attempt_number),
            )
        log.warning("sync run failed; next try in %.0f s: %s", wait, error)

    def _sleep(self, seconds: float) -> None:
        """tenacity's sleep: until the retry is due. Raises StartOver where something new resets the policy."""
        until = self._monotonic() + seconds
        with self._changed:
            while not self._stopping:
                now = self._monotonic()
                if not self._enrolled or self._agenda.starts_over(now):
                    raise StartOver
                if now >= until:
                    return
                wake = min(until, self._agenda.due().at)
                self._changed.wait(max(0.0, wake - now))
        raise Stopped

    def _run_once(self) -> None:
        with self._changed:
            covers = self._asked
            forced = self._agenda.due().at == 0.0
            self._running_forced = forced
            self._news = False
            self._agenda.begin()
        try:
            result = self._run(probe=forced, progress=self._tell)
        except AgentError as error:
            self._finish(None, error, covers)
            raise
        if result.failure is not None:
            self._finish(result, result.failure, self._asked if forced else covers)
            raise result.failure
        late = _did_all(result, forced=forced)
        self._finish(result, None, self._asked if late else covers)

    def _finish(self, result: "SyncResult | None", error: AgentError | None, covers: int) -> None:
        left = error is None and self._something_left()
        with self._changed:
            self._running_forced = None
            self._last_error = error
            self._failures = 0 if error is None else self._failures + 1
            if error is None and result is not None:
                self._agenda.succeed(self._monotonic(), waiting=left or self._news, offline=result.offline)
            if self._asked > covers:
                self._agenda.ask()
        self._tell(Finished(result=result, error=None if result else error, covers=covers))

    def _something_left(self) -> bool:
        """Whether anything waits that the run did not deliver. Counted after `news` is told to speak up again: else an
        event that was recorded after the run's own count would be neither in it nor make itself heard."""
        self._news = False
        try:
            return self._waiting() > 0
        except AgentError:
            return True

    def _finish_badly(self, error: AgentError) -> None:
        with self._changed:
            self._running_forced = None
            self._last_error = error
            self._agenda.fail(self._monotonic(), wait=AFTER_FAULT_S, retry_after=None, why=_why(error, 1))
            covers = self._asked
        self._tell(Finished(result=None, error=error, covers=covers))


def _did_all(result: "SyncResult", *, forced: bool) -> bool:
    """Whether a run serves those too who asked while it was under way: it heard the receiver and left nothing."""
    heard = forced or result.delivered or result.duplicates or result.rejected
    return bool(heard) and not result.offline and not result.waiting


def _why(error: AgentError, attempt: int) -> str:
    kind = getattr(error, "kind", error.code)
    return f"the last run failed ({kind}); try {attempt + 1}"


def describe(live: Live, now: float) -> dict[str, Any]:
    """As the answer to a status request has it."""
    error = live.last_error
    return {
        "running": live.running,
        "next_run_in_s": None if live.due is None else round(max(0.0, live.due.at - now), 1),
        "next_run_why": None if live.due is None else live.due.why,
        "failures": live.failures,
        "last_error": None
        if error is None
        else {"code": error.code, "kind": getattr(error, "kind", None), "detail": str(error)},
    }
