"""The thread that delivers: it waits until a sync run is due, makes it, and retries as the policy says.

tenacity is the engine of the retries; its sleep is a wait on this module's condition, which new connectivity,
`pisync sync` and the end of the service cut short. New events do not: a time the receiver named is respected.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from pisync_agent.errors import AgentError
from pisync_agent.service.restraints import Restraints
from pisync_agent.service.schedule import Due, Schedule
from pisync_agent.sync.progress import Progress, Show, SyncResult

log = logging.getLogger(__name__)

AFTER_FAULT_S: Final = 60.0
"""The pause after an unexpected error."""


class Run(Protocol):
    """Makes one sync run; failures of delivery are in its result. Raises AgentError where the outbox fails."""

    def __call__(self, *, probe: bool, progress: Show) -> SyncResult: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A sync run is over: its result, or the error that prevented one, for all requests up to `covers`."""

    result: SyncResult | None
    error: AgentError | None
    covers: int


Notify = Callable[[Progress | Finished | None], None]
"""Called with the news of a run, from the scheduler's thread; None: the thread has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """What the scheduler is doing."""

    running: bool
    due: Due | None
    failures: int
    """Failed runs since the last successful run."""
    last_error: AgentError | None

    def fields(self, now: float) -> dict[str, Any]:
        """Return it as the answer to a status request has it."""
        error = self.last_error
        return {
            "running": self.running,
            "next_run_in_s": None if self.due is None else round(max(0.0, self.due.at - now), 1),
            "next_run_why": None if self.due is None else self.due.why,
            "failures": self.failures,
            "last_error": None
            if error is None
            else {"code": error.code, "kind": getattr(error, "kind", None), "detail": str(error)},
        }


class StartOver(Exception):
    """The wait between two attempts ends, and with it the count of failures."""


class Stopped(Exception):
    """The service ends."""


@dataclass(kw_only=True)
class Scheduler:
    """One thread. `request`, `recorded`, `link_up`, `set_enrolled` and `stop` may be called from any thread."""

    run: Run
    schedule: Schedule
    wait_policy: Callable[[RetryCallState], float]
    notify: Notify
    monotonic: Callable[[], float]
    waiting: Callable[[], int]
    enrolled: bool
    restraints: Restraints = field(default_factory=Restraints)
    stopping: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _recorded: bool = False
    _requests: int = 0
    _running_forced: bool | None = None
    _failures: int = 0
    _last_error: AgentError | None = None

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name="sync", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Make no further run; the present run ends after the batch in flight."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()

    def join(self, timeout: float) -> bool:
        """Wait for the thread; return whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def request(self) -> int:
        """Request a run now; it is over when a `Finished` covers the returned number."""
        with self._changed:
            self._requests += 1
            if self._running_forced is None:
                self.schedule.request()
            self._changed.notify_all()
            return self._requests

    def recorded(self, events: int = 1) -> None:
        """Note that events were recorded. Wakes the thread only where that makes a run due, or due earlier."""
        with self._changed:
            self._recorded = True
            if self.schedule.recorded(self.monotonic(), events):
                self._changed.notify_all()

    def link_up(self) -> None:
        """Note that a link has come up."""
        with self._changed:
            self.schedule.link_up(self.monotonic())
            self.restraints.link_changed()
            self._changed.notify_all()

    def set_enrolled(self, enrolled: bool) -> None:
        """Note that the identity has changed."""
        with self._changed:
            self.enrolled = enrolled
            if enrolled:
                self.schedule.request()
            self._changed.notify_all()

    def live(self) -> Live:
        with self._changed:
            due = self._due() if self.enrolled and self._running_forced is None else None
            return Live(
                running=self._running_forced is not None,
                due=due,
                failures=self._failures,
                last_error=self._last_error,
            )

    # The thread

    def _work(self) -> None:
        try:
            self._sync_until_stopped()
        finally:
            self.notify(None)

    def _sync_until_stopped(self) -> None:
        while not self.stopping:
            try:
                self._wait_until_due()
                self._sync()
            except StartOver:
                continue
            except Stopped:
                return
            except Exception as error:
                log.exception("a sync run failed unexpectedly; PiSync goes on")
                self._finish_badly(AgentError(f"the sync run failed: {type(error).__name__}: {error}"))

    def _wait_until_due(self) -> None:
        with self._changed:
            while not self.stopping:
                seconds = self._due().at - self.monotonic() if self.enrolled else None
                if seconds is not None and seconds <= 0:
                    return
                self._changed.wait(seconds)
        raise Stopped

    def _due(self) -> Due:
        """Return the next run, as it is due in the quiet hours of now. With the lock held."""
        self.schedule.set_quiet(self.monotonic(), self.restraints.quiet())
        return self.schedule.due()

    def _sync(self) -> None:
        """Run; after a failure wait as the policy says and run again, until a run succeeds."""
        retrying = Retrying(
            wait=self.wait_policy,
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
            self.schedule.fail(
                self.monotonic(),
                wait=wait,
                retry_after=getattr(error, "retry_after", None),
                why=_why(error, state.attempt_number),
            )
        log.warning("sync run failed; next attempt in %.0f s: %s", wait, error)

    def _sleep(self, seconds: float) -> None:
        """Sleep until the retry is due, for tenacity. Raises StartOver where an event resets the policy."""
        until = self.monotonic() + seconds
        with self._changed:
            while not self.stopping:
                now, due = self.monotonic(), self._due().at
                if not self.enrolled or self.schedule.starts_over(now):
                    raise StartOver
                if now >= max(until, due):
                    return
                self._changed.wait(max(0.0, due - now) or until - now)
        raise Stopped

    def _run_once(self) -> None:
        with self._changed:
            covers = self._requests
            forced = self.schedule.due().at == 0.0
            self._running_forced = forced
            self._recorded = False
            self.schedule.begin()
        try:
            result = self.run(probe=forced, progress=self.notify)
        except AgentError as error:
            self._finish(None, error, covers)
            raise
        if result.failure is not None:
            self._finish(result, result.failure, self._requests if forced else covers)
            raise result.failure
        late = _covers_late_requests(result, forced=forced)
        self._finish(result, None, self._requests if late else covers)

    def _finish(self, result: SyncResult | None, error: AgentError | None, covers: int) -> None:
        left = error is None and self._something_left()
        metered = self.restraints.metered(self.monotonic())
        with self._changed:
            self.schedule.set_metered(metered)
            self._running_forced = None
            self._last_error = error
            self._failures = 0 if error is None else self._failures + 1
            if error is None and result is not None:
                self.schedule.succeed(self.monotonic(), waiting=left or self._recorded, offline=result.offline)
            if self._requests > covers:
                self.schedule.request()
        self.notify(Finished(result=result, error=None if result else error, covers=covers))

    def _something_left(self) -> bool:
        """Return whether events are pending that the run did not deliver.

        `_recorded` is reset before the count: otherwise an event recorded after the run's own count would neither be
        in it nor make another run due.
        """
        self._recorded = False
        try:
            return self.waiting() > 0
        except AgentError:
            return True

    def _finish_badly(self, error: AgentError) -> None:
        with self._changed:
            self._running_forced = None
            self._last_error = error
            self.schedule.fail(self.monotonic(), wait=AFTER_FAULT_S, retry_after=None, why=_why(error, 1))
            covers = self._requests
        self.notify(Finished(result=None, error=error, covers=covers))


def _covers_late_requests(result: SyncResult, *, forced: bool) -> bool:
    """Return whether a run also serves requests made during it: it reached the receiver and left nothing."""
    reached = forced or result.delivered or result.duplicates or result.rejected
    return bool(reached) and not result.offline and not result.waiting


def _why(error: AgentError, attempt: int) -> str:
    kind = getattr(error, "kind", error.code)
    return f"the last run failed ({kind}); attempt {attempt + 1}"
