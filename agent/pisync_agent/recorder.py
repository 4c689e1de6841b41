"""What learning apps call: `Recorder.record` returns an event's seq once a power cut can no longer lose it.

Where the service runs, events go to it through its socket: it is the one writer, and it commits together what several
apps send together. Where it does not run, the recorder takes the writer's lock for each group and writes itself, by
the same code. Threads of one process share a commit, and a message, in either case.

**Neither lost nor doubled.** If the connection breaks after a message was sent and before its answer, it is unknown
whether the events were stored. They are sent again, to the service or to the outbox directly, marked `retried`. An
event with an `id` of its own is found by that. An event without one has an `attempt`, 63 random bits made when it is
first sent; they are stored in the event's own row (9 bytes on its page, no index, no second page to write), and a
retried event is looked for among the newest 100,000 before it is recorded. An event that was never sent has none.

A recorder may be used from many threads, and after a fork: the child opens connections of its own.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

from pisync_agent.clock import Clock, SystemClock
from pisync_agent.config import HOME, folder, settings_from
from pisync_agent.config import limits as outbox_limits
from pisync_agent.errors import AgentError, InvalidEvent, StoreUnusable
from pisync_agent.group_commit import GroupCommit
from pisync_agent.outbox import files
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.service import protocol
from pisync_common.errors import LockHeld
from pisync_common.single_writer import WriterLock
from pisync_common.unix_socket import LineClient

MESSAGE_EVENTS: Final = 1000
MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""About the size of one message; a line may have twice that."""

_POLL_S: Final = (0.0005, 0.05)


class Recorder:
    """Records progress events. A context manager; thread-safe.

    `home` is the agent's folder, by default the folder from the settings.
    """

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
            settings = settings_from(argparse.Namespace())
            home, limits = settings[HOME], limits or outbox_limits(settings)
        self._home = folder(home)
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
        occurred_at: datetime | None = None,
    ) -> int:
        """Store one progress event durably and return its seq.

        `id` is the app's own key: the same id with the same content again returns the same seq. `occurred_at` is when
        it happened, an aware datetime; by default now. Raises InvalidEvent, OutboxFull or StoreUnusable: nothing was
        recorded then.
        """
        event = NewEvent.create(
            type,
            stamp=self._clock.stamp(),
            occurred_at=occurred_at,
            id=id,
            learner_id=learner_id,
            object_id=object_id,
            data=data,
        )
        result = self._group.submit([event])[0]
        if isinstance(result, AgentError):
            raise result
        return result

    def record_many(self, events: Iterable[Mapping[str, Any] | NewEvent]) -> list[int | AgentError]:
        """Store many events and return for each its seq, or the error that kept it out.

        Each mapping has `type` and the other arguments of `record`. Raises OutboxFull or StoreUnusable if none could
        be stored.
        """
        made = [self._new_event(event) for event in events]
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

    def _new_event(self, fields: Mapping[str, Any] | NewEvent) -> NewEvent | InvalidEvent:
        if isinstance(fields, NewEvent):
            return fields
        try:
            wanted = dict(fields)
            return NewEvent.create(wanted.pop("type", ""), stamp=self._clock.stamp(), **wanted)
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
        """Store through the service if it runs, else directly; repeat until either has answered."""
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
                jitter = os.urandom(1)[0] / 255
                self._sleep(jitter * min(_POLL_S[1], _POLL_S[0] * 2**tries))

    # Through the service

    def _connected(self) -> bool:
        if self._link is None:
            try:
                self._link = LineClient(files.socket(self._home))
            except protocol.NOT_LISTENING:
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
            answer = self._link.ask(protocol.record_request([event.fields() for event in events]))
        except ValueError as error:
            raise ConnectionResetError(f"not a message: {error}") from error
        return protocol.record_results(answer, len(events))

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    # Directly

    def _store_directly(self, events: Sequence[NewEvent]) -> list[int | AgentError]:
        """Raises LockHeld if another process is writing."""
        with files.errors(self._home):
            files.make_folder(self._home)
            self._lock.acquire(wait=False)
        try:
            return self._current_outbox().append(events)
        finally:
            self._lock.release()

    def _current_outbox(self) -> Outbox:
        """Return the outbox; open it again if another process has replaced its file."""
        if self._outbox is not None and not self._outbox.is_current():
            self._outbox.close()
            self._outbox = None
        if self._outbox is None:
            self._outbox = self._open_outbox(self._home)
        return self._outbox

    def _close_outbox(self) -> None:
        # The last connection to a database writes its log back, so closing is writing. If another process has the
        # lock, it has the file open, and this connection is not the last.
        with contextlib.suppress(LockHeld, OSError):
            self._lock.acquire(wait=False)
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None
        self._lock.release()

    def forget_parent(self) -> None:
        """Drop the parent's connections and locks, in a child after a fork."""
        self._lock.release()  # closes this process's copy of the descriptor; the parent keeps the lock
        self._drop_link()
        if self._outbox is not None:
            # Closing it here would write to the parent's database.
            self._inherited.append(self._outbox)
            self._outbox = None
        self._group = self._new_group()


def _messages(events: Sequence[NewEvent]) -> Iterable[list[NewEvent]]:
    """Divide events into messages of bounded size."""
    message: list[NewEvent] = []
    size = 0
    for event in events:
        weight = _weight(event)
        if message and (len(message) >= MESSAGE_EVENTS or size + weight > MESSAGE_BYTES):
            yield message
            message, size = [], 0
        message.append(event)
        size += weight
    if message:
        yield message


def _weight(event: NewEvent) -> int:
    """Return a bound of an event's bytes in a message, where every character may be written as ASCII escapes."""
    ids = sum(len(text or "") for text in (event.id, event.learner_id, event.object_id))
    return 1024 + 6 * 2 * ids + 3 * len((event.data or "").encode())


def _with_attempts(events: Sequence[NewEvent]) -> list[NewEvent]:
    """Give each event an attempt that has neither an attempt nor an id of its own."""
    return [
        dataclasses.replace(event, attempt=int.from_bytes(os.urandom(8)) >> 1)
        if event.id is None and event.attempt is None
        else event
        for event in events
    ]


def _forked(recorder: "weakref.ref[Recorder]") -> None:
    alive = recorder()
    if alive is not None:
        alive.forget_parent()
