"""What learning apps call: `Recorder.record` returns an event's seq once a power cut cannot lose it any more.

Where the service runs, events go to it through its socket: one writer, and it commits what several apps send
together. Where it does not, the recorder takes the writer's lock for each group and writes itself, by the same code.
Threads of one process share a commit, and a message, in either case.

**Neither lost nor doubled.** If the socket dies after a message was sent and before its answer, nobody knows whether
the events were stored. They are sent again, to the service or to the outbox directly, marked `retried`. A caller's
own `id` finds such an event by its key. One without carries `attempt`, 63 random bits made when it is first sent; they
are kept in the event's own row (9 bytes on its page, no index, no second page to write), and a retried event is looked
for among the newest 100,000 before it is recorded. An event that was never sent carries none.

A recorder may be used from many threads, and after a fork: the child makes connections of its own.
"""

import contextlib
import dataclasses
import functools
import os
import random
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from pisync_agent import local
from pisync_agent.clock import Clock, SystemClock
from pisync_agent.errors import AgentError, InvalidEvent, StoreUnusable
from pisync_agent.group import GroupCommit
from pisync_agent.outbox import files
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.outbox.opening import open_outbox
from pisync_agent.outbox.outbox import Outbox
from pisync_common.errors import LockHeld
from pisync_common.single_writer import WriterLock
from pisync_common.unix_socket import LineClient

MESSAGE_EVENTS: Final = 1000
MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""About the size of one message; a line may have twice that."""

_POLL_S: Final = (0.0005, 0.05)


class Recorder:
    """See the module. A context manager; thread-safe. `home` is the agent's folder; by default the settings' one."""

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        limits: OutboxLimits | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
        open_outbox: Callable[..., Outbox] = open_outbox,
    ) -> None:
        if home is None:
            home, limits = _configured(limits)
        self._home = Path(home)
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._open_outbox = functools.partial(open_outbox, limits=limits, clock=self._clock)
        self._lock = WriterLock(files.lock(self._home))
        self._link: LineClient | None = None
        self._outbox: Outbox | None = None
        self._inherited: list[object] = []
        self._group = self._new_group()
        os.register_at_fork(after_in_child=functools.partial(_forked, weakref.ref(self)))

    def record(
        self,
        type: str,
        *,
        learner_id: str | None = None,
        object_id: str | None = None,
        data: Mapping[str, object] | None = None,
        id: str | None = None,
    ) -> int:
        """Store one progress event durably; its seq. The same `id` with the same content again: the same seq.

        Raises InvalidEvent, OutboxFull or StoreUnusable: nothing was recorded then.
        """
        event = NewEvent.create(
            type, stamp=self._clock.stamp(), learner_id=learner_id, object_id=object_id, data=data, key=id
        )
        result = self._group.submit([event])[0]
        if isinstance(result, AgentError):
            raise result
        return result

    def record_many(self, events: Iterable[Mapping[str, Any] | NewEvent]) -> list[int | AgentError]:
        """Store many; each mapping has `type` and whatever else `record` takes. For each its seq or what was wrong.

        Raises OutboxFull or StoreUnusable if none could be stored.
        """
        made = [self._made(event) for event in events]
        valid = [event for event in made if isinstance(event, NewEvent)]
        results = iter(self._group.submit(valid) if valid else [])
        return [next(results) if isinstance(event, NewEvent) else event for event in made]

    def close(self) -> None:
        """Close connections; the recorder opens them again if it is used again."""
        self._drop_link()
        if self._outbox is not None:
            self._close_outbox()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_group(self) -> GroupCommit[Sequence[NewEvent], list[int | AgentError]]:
        return GroupCommit(self._commit, most=MESSAGE_EVENTS)

    def _made(self, fields: Mapping[str, Any] | NewEvent) -> NewEvent | InvalidEvent:
        if isinstance(fields, NewEvent):
            return fields
        try:
            wanted = dict(fields)
            return NewEvent.create(
                wanted.pop("type", ""), stamp=self._clock.stamp(), key=wanted.pop("id", None), **wanted
            )
        except InvalidEvent as error:
            return error
        except (TypeError, ValueError) as error:
            return InvalidEvent(f"not an event: {error}")

    # A group

    def _commit(self, submitted: Sequence[Sequence[NewEvent]]) -> list[list[int | AgentError]]:
        """Store all events of several callers, in as few commits as messages allow."""
        results: list[int | AgentError] = []
        for events in _messages([event for each in submitted for event in each]):
            try:
                results += self._store(events)
            except AgentError as error:
                if not results:
                    raise
                results += [error] * len(events)
        answers = iter(results)
        return [[next(answers) for _ in each] for each in submitted]

    def _store(self, events: Sequence[NewEvent]) -> list[int | AgentError]:
        """Through the service if there is one, else directly; again until one of them has answered."""
        tries = 0
        while True:
            if self._connected():
                events = _with_attempts(events)
                try:
                    return self._ask(events)
                except OSError:
                    self._drop_link()
                    events = [dataclasses.replace(event, retried=True) for event in events]
            try:
                return self._store_directly(events)
            except LockHeld:  # by a service that is starting, or by another recorder for a moment
                tries += 1
                self._sleep(random.uniform(0, min(_POLL_S[1], _POLL_S[0] * 2**tries)))  # noqa: S311 - no secret

    # Through the service

    def _connected(self) -> bool:
        if self._link is None:
            try:
                self._link = LineClient(files.socket(self._home))
            except local.NOBODY_LISTENS:
                return False
            except OSError as error:
                raise StoreUnusable(
                    f"the service's socket {files.socket(self._home)} cannot be reached ({error}): nothing was "
                    "recorded. Run as the agent's user, or join its group."
                ) from error
        return True

    def _ask(self, events: Sequence[NewEvent]) -> list[int | AgentError]:
        assert self._link is not None
        try:
            answer = self._link.ask(local.record_request([event.fields() for event in events]))
        except ValueError as error:
            raise ConnectionResetError(f"not a message: {error}") from error
        return local.record_results(answer, len(events))

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    # Directly

    def _store_directly(self, events: Sequence[NewEvent]) -> list[int | AgentError]:
        """Raises LockHeld if another process is writing."""
        with files.errors(self._home):
            self._home.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(wait=False)
        try:
            return self._current_outbox().append(events)
        finally:
            self._lock.release()

    def _current_outbox(self) -> Outbox:
        """The outbox; opened anew if another process has put another file in its place."""
        if self._outbox is not None and not self._outbox.is_current():
            self._outbox.close()
            self._outbox = None
        if self._outbox is None:
            self._outbox = self._open_outbox(self._home)
        return self._outbox

    def _close_outbox(self) -> None:
        # The last connection to a database writes its log back, so closing is writing. If another process has the
        # lock, it has the file open, and ours is not the last.
        with contextlib.suppress(LockHeld, OSError):
            self._lock.acquire(wait=False)
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None
        self._lock.release()

    def forget_parent(self) -> None:
        """In a child after a fork: the parent's connections and locks are the parent's."""
        self._lock.release()  # closes this process's copy of the descriptor; the parent keeps the lock
        self._drop_link()
        if self._outbox is not None:
            # Closing it here would write to the parent's database.
            self._inherited.append(self._outbox)
            self._outbox = None
        self._group = self._new_group()


def _configured(limits: OutboxLimits | None) -> tuple[Path, OutboxLimits]:
    """The folder and limits that the agent's commands use here: variables, then the TOML file, then the defaults."""
    import argparse

    from pisync_agent import config  # most callers name the folder

    settings = config.settings_from(argparse.Namespace(), os.environ)
    return settings[config.HOME], limits or config.limits(settings)


def _messages(events: Sequence[NewEvent]) -> Iterable[list[NewEvent]]:
    """Cut into messages of bounded size."""
    message: list[NewEvent] = []
    size = 0
    for event in events:
        # Written as ASCII, a character of `data` takes three times its UTF-8 bytes at most.
        weight = 2048 + 3 * len((event.data or "").encode()) + 6 * len(event.object_id or "")
        if message and (len(message) >= MESSAGE_EVENTS or size + weight > MESSAGE_BYTES):
            yield message
            message, size = [], 0
        message.append(event)
        size += weight
    if message:
        yield message


def _with_attempts(events: Sequence[NewEvent]) -> list[NewEvent]:
    """Each event without a key of its own, nor an attempt yet, gets one."""
    return [
        dataclasses.replace(event, attempt=secrets.randbits(63))
        if event.key is None and event.attempt is None
        else event
        for event in events
    ]


def _forked(recorder: "weakref.ref[Recorder]") -> None:
    alive = recorder()
    if alive is not None:
        alive.forget_parent()
