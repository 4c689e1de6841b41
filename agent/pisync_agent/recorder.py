"""What learning apps call: `Recorder.record` returns an event's seq once a power cut can no longer lose it.

Where the service is installed, events go to it through its socket: it is the one writer, and it commits together what
several apps send together. systemd holds the socket while the service restarts, so a recorder waits for it. Where
nothing listens, the recorder takes the writer's lock for each group and writes itself, by the same code. Threads of one
process share a commit, and a message, in either case.

**Neither lost nor doubled.** If the connection breaks after a message was sent and before its answer, it is unknown
whether the events were stored. They are sent again, marked `retried`: to the service, or to the outbox directly where
nothing listens any more. An event with an `id` of its own is found by that. An event without one has an `attempt`, 63
random bits made when it is first sent; they are stored in the event's own row (9 bytes on its page, no index, no second
page to write), and a retried event is looked for among the newest 100,000 before it is recorded. An event that was
never sent has none.

**Never without end.** Each call has a timeout, whatever the service and other writers do. A message carries the
caller's deadline, and the service refuses what it reads later; so an event whose message the service had not read
whole by then is not recorded. Otherwise it may have been, and the error says so.

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
from pisync_agent.config import HOME, folder, refuse_private, settings_from
from pisync_agent.config import limits as outbox_limits
from pisync_agent.errors import AgentError, InvalidEvent, NotAnswering, StoreUnusable
from pisync_agent.group_commit import GroupCommit, OutOfTime
from pisync_agent.outbox import files
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.service import access, protocol
from pisync_common.errors import LockHeld
from pisync_common.limits import MIB
from pisync_common.single_writer import WriterLock
from pisync_common.unix_socket import LineClient

TIMEOUT_S: Final = 10.0
"""How long a call may take by default."""
_WAITED: Final = 0.95
"""The part of it that may be waited; the rest is for raising the error in time."""

MESSAGE_BYTES: Final = 1 * MIB
"""The size of one message; a line may have twice that (`unix_socket.LINE_BYTES`)."""

_TIMEOUT_MAX_S: Final = 86_400.0
_POLL_S: Final = (0.0005, 0.05)
_MAYBE: Final = (
    "the event may have been recorded. Record it again with the same id: then it is stored once (an event without an "
    "id may be stored twice)"
)


@dataclasses.dataclass(slots=True)
class _Entry:
    """An event on its way, and whether an attempt to record it may have succeeded."""

    event: NewEvent
    uncertain: bool = False


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
        timeout: float = TIMEOUT_S,
    ) -> int:
        """Store one progress event durably and return its seq.

        `id` is the app's own key: the same id with the same content again returns the same seq. `occurred_at` is when
        it happened, an aware datetime; by default now. Raises InvalidEvent, OutboxFull or StoreUnusable: nothing was
        recorded then. Where no answer comes within `timeout` seconds it raises NotAnswering, a StoreUnusable whose
        text says whether the event may have been recorded.
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
        result = self._submit([_Entry(event)], timeout)[0]
        if isinstance(result, AgentError):
            raise result
        return result

    def record_many(
        self, events: Iterable[Mapping[str, Any] | NewEvent], *, timeout: float = TIMEOUT_S
    ) -> list[int | AgentError]:
        """Store many events and return for each its seq, or the error that kept it out.

        Each mapping has `type` and the other arguments of `record`. Raises OutboxFull or StoreUnusable if none could
        be stored. `timeout` is for each MiB or thousand events, and ends the call.
        """
        made = [self._new_event(event) for event in events]
        valid = [event for event in made if isinstance(event, NewEvent)]
        results = iter(self._submit_many(valid, timeout))
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

    def _new_group(self) -> GroupCommit[Sequence[_Entry], list[int | AgentError]]:
        return GroupCommit(self._commit, most=protocol.RECORD_EVENTS, monotonic=self._clock.monotonic)

    def _submit_many(self, events: Sequence[NewEvent], timeout: float) -> list[int | AgentError]:
        results: list[int | AgentError] = []
        for entries in _messages([_Entry(event) for event in events]):
            try:
                results += self._submit(entries, timeout)
            except AgentError as error:
                if not results:
                    raise
                results += [error] * len(entries)
                if isinstance(error, NotAnswering):
                    return results + [self._not_answering([])] * (len(events) - len(results))
        return results

    def _submit(self, entries: Sequence[_Entry], timeout: float) -> list[int | AgentError]:
        """Raises NotAnswering after `timeout` seconds, or what kept all of them out."""
        seconds = _WAITED * max(0.0, min(timeout, _TIMEOUT_MAX_S))
        try:
            return self._group.submit(entries, deadline=self._clock.monotonic() + seconds)
        except OutOfTime as late:
            if late.begun:
                entries[0].uncertain = True
            raise self._not_answering(entries) from late

    def _not_answering(self, entries: Iterable[_Entry]) -> NotAnswering:
        maybe = any(entry.uncertain for entry in entries)
        error = protocol.not_answering(self._home, _MAYBE if maybe else "nothing was recorded")
        error.uncertain = maybe
        return error

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

    def _commit(self, submitted: Sequence[Sequence[_Entry]], deadline: float) -> list[list[int | AgentError]]:
        """Store all events of several callers, in as few commits as messages allow. Raises OutOfTime."""
        results: list[int | AgentError] = []
        for entries in _messages([entry for each in submitted for entry in each]):
            try:
                results += self._store(entries, deadline)
            except (AgentError, OutOfTime) as error:
                if not results:
                    raise
                told = error if isinstance(error, AgentError) else self._not_answering(entries)
                results += [told] * len(entries)
        answers = iter(results)
        return [[next(answers) for _ in each] for each in submitted]

    def _store(self, entries: Sequence[_Entry], deadline: float) -> list[int | AgentError]:
        """Store through the service if one listens, else directly; repeat until either has answered. Raises OutOfTime.

        After a broken connection the service is asked again: systemd holds its socket while it restarts.
        """
        tries = 0
        while True:
            served = True
            try:
                served = self._connected(deadline)
                if served:
                    return self._ask(entries, deadline)
            except TimeoutError as error:
                raise OutOfTime from error
            except OSError:
                for entry in entries:
                    entry.uncertain = True
            left = deadline - self._clock.monotonic()
            if not served and (results := self._try_directly(entries, last=left <= 0)) is not None:
                return results
            if left <= 0:
                raise OutOfTime
            tries += 1
            jitter = os.urandom(1)[0] / 255
            self._sleep(jitter * min(_POLL_S[1], _POLL_S[0] * 2**tries, left))

    def _try_directly(self, entries: Sequence[_Entry], *, last: bool) -> list[int | AgentError] | None:
        """Store directly; return None where it may work in a moment, and this is not the last try."""
        try:
            return self._store_directly([_event(entry) for entry in entries])
        except LockHeld:  # by a service that is starting, or by another recorder for a moment
            return None
        except AgentError as error:
            if not any(entry.uncertain for entry in entries):
                raise
            if not last and isinstance(error, StoreUnusable):  # the service may be back in a moment
                return None
            told = type(error)(f"the service ended: {_MAYBE}. Without it, now: {error}")
            told.uncertain = True
            raise told from error

    # Through the service

    def _connected(self, deadline: float) -> bool:
        """Return whether there is a connection to the service. Raises TimeoutError."""
        if self._link is None:
            try:
                self._link = protocol.connect(files.socket(self._home), deadline - self._clock.monotonic())
            except TimeoutError:
                raise
            except OSError as error:
                raise StoreUnusable(f"{error}: nothing was recorded") from error
        return self._link is not None

    def _ask(self, entries: Sequence[_Entry], deadline: float) -> list[int | AgentError]:
        """Raises TimeoutError, or another OSError if it is unknown whether the events were stored."""
        link = self._link
        assert link is not None
        for entry in entries:
            entry.event = _with_attempt(entry.event)
        seconds = deadline - self._clock.monotonic()
        expires_ms = self._clock.stamp().boottime_ms + int(1000 * seconds)
        try:
            events = [_event(entry).fields() for entry in entries]
            link.send(protocol.record_request(events, expires_ms), timeout=seconds)
            answer = self._answer(link, entries, deadline)
            return protocol.record_results(answer, len(entries))
        except AgentError:
            raise
        except BaseException:  # a later call must not get this answer
            self._drop_link()
            raise

    def _answer(self, link: LineClient, entries: Sequence[_Entry], deadline: float) -> dict[str, Any]:
        """Return the answer to a message. Raises TimeoutError, having noted whether the service had read it."""
        try:
            return link.receive(timeout=deadline - self._clock.monotonic())
        except TimeoutError:
            if not link.has_unread():
                for entry in entries:
                    entry.uncertain = True
            raise

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    # Directly

    def _store_directly(self, events: Sequence[NewEvent]) -> list[int | AgentError]:
        """Raises LockHeld if another process is writing."""
        refuse_private(self._home)
        with files.errors(self._home), access.needs_service(self._home):
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


def _messages(entries: Sequence[_Entry]) -> Iterable[list[_Entry]]:
    """Divide events into messages of bounded size."""
    message: list[_Entry] = []
    size = 0
    for entry in entries:
        weight = _weight(entry.event)
        if message and (len(message) >= protocol.RECORD_EVENTS or size + weight > MESSAGE_BYTES):
            yield message
            message, size = [], 0
        message.append(entry)
        size += weight
    if message:
        yield message


def _weight(event: NewEvent) -> int:
    """Return a bound of an event's bytes in a message, where every character may be written as ASCII escapes."""
    ids = sum(len(text or "") for text in (event.id, event.learner_id, event.object_id))
    return 1024 + 6 * 2 * ids + 3 * len((event.data or "").encode())


def _with_attempt(event: NewEvent) -> NewEvent:
    """Give the event an attempt if it has neither an attempt nor an id of its own."""
    if event.id is not None or event.attempt is not None or event.adopted_from is not None:
        return event
    return dataclasses.replace(event, attempt=int.from_bytes(os.urandom(8)) >> 1)


def _event(entry: _Entry) -> NewEvent:
    """Return the event, marked as retried if it may have been recorded before."""
    return dataclasses.replace(entry.event, retried=True) if entry.uncertain else entry.event


def _forked(recorder: "weakref.ref[Recorder]") -> None:
    alive = recorder()
    if alive is not None:
        alive.forget_parent()
