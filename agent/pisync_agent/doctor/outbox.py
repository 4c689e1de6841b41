"""The outbox: whether its file is sound, how long events wait, which were rejected, and whether the card was copied."""

from typing import Final

from pisync_agent.doctor.findings import Finding, bad, ok, skipped, warn
from pisync_agent.doctor.service import last_failure
from pisync_agent.doctor.subject import Subject
from pisync_agent.errors import AgentError
from pisync_agent.formatting import count, moment, span
from pisync_agent.outbox.faults import Fault
from pisync_agent.outbox.integrity import Integrity
from pisync_common.models import Receipt
from pisync_common.times import parse_ms

INTEGRITY_S: Final = 3.0
OLD_S: Final = 86_400.0
"""Events that wait longer than a school day and a night deserve a word."""
CLONED: Final = "cloned"
"""In the reason of a stream that began because the receiver had other events under the same numbers."""


_HIDDEN: Final = (Fault.DAMAGED, Fault.LOG_MISSING)
"""What SQLite itself may not notice, such as a log that was cut or deleted."""


def check_outbox(subject: Subject, found: Integrity | AgentError | None) -> Finding:
    """Judge the file; None if this user may not read it."""
    if found is None:
        if subject.state is not None and not subject.outbox["stream"]:
            return ok("outbox", "there is none yet: no event was recorded")
        if subject.state is not None:
            return skipped("outbox", "only the agent's user may read the file: sudo pisync doctor", *_salvaged(subject))
        if subject.hidden or subject.silent:
            return skipped("outbox", subject.state_fault)
        return bad("outbox", f"The outbox cannot be read: {subject.state_fault}", advice=_salvage(subject))
    if isinstance(found, AgentError):
        return bad("outbox", f"The outbox cannot be read: {found}", advice="Do as this text says.")
    if found.problems:
        return bad(
            "outbox",
            "The outbox's file is damaged. What can be read of it is saved when the service starts; the damaged file "
            "is kept beside it.",
            *found.problems,
            advice=_salvage(subject),
        )
    if subject.condition is not None and subject.condition.fault in _HIDDEN:
        return bad("outbox", "The outbox's files are damaged.", subject.condition.detail, advice=_salvage(subject))
    if subject.state is None and subject.state_fault:
        return bad("outbox", f"The outbox cannot be read: {subject.state_fault}", advice="Do as this text says.")
    part = "sound" if found.complete else "no damage in the part that could be read in a few seconds"
    return ok("outbox", f"{part}; {count(subject.outbox.get('last_seq') or 0, 'event')} recorded", *_salvaged(subject))


def _salvage(subject: Subject) -> str:
    return f"Copy {subject.home} to another disk first, if you can; then {subject.restart}"


def _salvaged(subject: Subject) -> tuple[str, ...]:
    return tuple(
        f"{moment(each['at_ms'])}: {each['file']} was set aside ({each['reason']}), {each['transferred']:,} saved"
        for each in list(subject.outbox.get("salvaged") or ())[-3:]
    )


def check_backlog(subject: Subject, *, now_ms: int) -> Finding:
    """Judge how long events wait for delivery. `now_ms` is the true time, where it is known."""
    if subject.state is None:
        return skipped("backlog", "the outbox cannot be read, see above")
    waiting = subject.outbox["waiting"]
    if not waiting:
        return ok("backlog", "everything is delivered" if subject.outbox["last_seq"] else "no event was recorded yet")
    age_s = _age_s(subject, now_ms)
    since = "" if age_s is None else f"; the oldest waits for {span(age_s)}"
    summary = f"{count(waiting, 'event')} {'waits' if waiting == 1 else 'wait'} for delivery{since}"
    failure = last_failure(subject)
    evidence = [f"the last attempt failed: {failure.get('detail')}"] if failure else []
    if age_s is None or age_s < OLD_S:
        return ok("backlog", summary, *evidence)
    return warn(
        "backlog",
        f"{summary}. They are safe on this device.",
        *evidence,
        advice="Mend what is named above; then deliver with: pisync sync",
    )


def _age_s(subject: Subject, now_ms: int) -> float | None:
    """Return how long the oldest event waits; None if its time or this device's cannot be right."""
    try:
        age_s = (now_ms - parse_ms(str((subject.oldest or {}).get("occurred_at")))) / 1000
    except ValueError:
        return None
    return age_s if 0 <= age_s < 20 * 365 * 86_400 else None


def check_rejected(subject: Subject) -> Finding:
    """Judge dead letters: events that the receiver will not take as they are."""
    if subject.state is None:
        return skipped("rejected", "the outbox cannot be read, see above")
    dead = subject.outbox["dead"]
    if not dead:
        return ok("rejected", "no event was rejected")
    return bad(
        "rejected",
        f"{count(dead, 'event')} {'was' if dead == 1 else 'were'} rejected. They are kept; they are not sent again on "
        "their own.",
        *(f"{number:,} times {code}" for code, number in sorted(subject.dead.items())),
        advice="See which and why: pisync queue dead   When the cause is gone: pisync queue requeue SEQ",
    )


def check_clone(subject: Subject, receipt: Receipt | None) -> Finding:
    """Judge whether another device delivers under this device's name: the card was copied, or restored."""
    reasons = [each for each in subject.outbox.get("salvaged") or () if CLONED in str(each["reason"])]
    last = subject.outbox.get("last_seq")
    if receipt is not None and last is not None and receipt.watermark > last:
        return bad(
            "clone",
            "Another device delivers under this device's name: the card was copied, or this is an older copy.",
            f"the receiver has events 1 to {receipt.watermark:,}, this device recorded 1 to {last:,}",
            advice=_CLONE,
        )
    if reasons:
        return warn(
            "clone",
            "The receiver met events of another device under this device's name: the card was copied at some time.",
            *(f"{moment(each['at_ms'])}: a new stream began" for each in reasons[-3:]),
            advice=_CLONE,
        )
    if subject.state is None:
        return skipped("clone", "the outbox cannot be read, see above")
    return ok("clone", "no sign of a copy of this card")


_CLONE: Final = (
    "Nothing is lost: both go on in streams of their own. Ask an administrator for a code for one of the two devices, "
    "then there: sudo pisync enroll URL --code CODE --again --device-id NEW-NAME"
)
