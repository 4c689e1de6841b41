"""Changes of state as they are watched, and what the API says of them and of notices."""

from collections.abc import Iterable

from msgspec import Struct

from pisync_receiver.domain.fleet import TROUBLE, State
from pisync_receiver.domain.records import Time, time_of
from pisync_receiver.domain.times import shown


class ChangedState(Struct, frozen=True):
    """A device that is not in the state in which it was seen before: a row of `changed_states`."""

    device_id: str
    site: str | None
    before: State | None
    """None for a device that is seen for the first time."""
    state: State
    since_ms: int | None
    errors: str | None
    silent_at_ms: int | None
    """When its silence counts, or counted, as too long."""
    in_contact: bool | None
    """Of a device that was silent: whether it has been in contact since."""


class Transition(Struct, frozen=True, kw_only=True):
    """Table `transitions` without `notified_ms`."""

    id: int
    device_id: str
    site: str | None
    before: State
    state: State
    at_ms: int
    """When it was noticed."""
    since_ms: int | None
    """When the state began."""
    errors: str | None = None
    """The error counts of the newest failure, as JSON text."""


class TransitionRecord(Struct, frozen=True, kw_only=True):
    """A device went from one state to another."""

    id: int
    at: Time
    """When the receiver noticed it."""
    device_id: str
    site: str | None
    """Where the device was then."""
    before: State
    """`new` also for a device that was not watched before."""
    state: State
    since: Time | None
    """When the state began."""


class NoticeRecord(Struct, frozen=True, kw_only=True):
    """A message to operators, for one target."""

    id: int
    target: str
    """`log`, or the service and its number among `alert_urls`."""
    kind: str
    """`change` of a device or a site, `digest` of many, `daily`."""
    title: str
    body: str
    made_at: Time
    sent_at: Time | None
    """When the service accepted it."""


def observe(changes: Iterable[ChangedState], now_ms: int) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return the transitions to note and the states to remember, as rows of `transitions` and `watched`.

    A device that is seen for the first time makes a transition only if it needs help. A device whose silence ended
    without a contact, because its limit was changed, makes none.
    """
    transitions: list[dict[str, object]] = []
    watched: list[dict[str, object]] = []
    for change in changes:
        silent_at_ms = change.silent_at_ms if change.state == "silent" else None
        watched.append({"device_id": change.device_id, "state": change.state, "silent_at_ms": silent_at_ms})
        if not _is_news(change):
            continue
        needs_notice = change.state in TROUBLE or change.before in TROUBLE
        transitions.append(
            {
                "device_id": change.device_id,
                "site": change.site,
                "before": change.before or "new",
                "state": change.state,
                "at_ms": now_ms,
                "since_ms": change.since_ms,
                "errors": change.errors,
                "notified_ms": None if needs_notice else now_ms,
            }
        )
    return transitions, watched


def _is_news(change: ChangedState) -> bool:
    if change.before is None:
        return change.state in TROUBLE
    return change.before != "silent" or change.state == "retired" or bool(change.in_contact)


def transition_record(row: Transition) -> TransitionRecord:
    return TransitionRecord(
        id=row.id,
        at=shown(row.at_ms),
        device_id=row.device_id,
        site=row.site,
        before=row.before,
        state=row.state,
        since=time_of(row.since_ms),
    )
