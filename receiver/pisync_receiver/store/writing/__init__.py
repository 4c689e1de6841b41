"""One group of submissions, inside one transaction: what is stored of each, whatever the engine."""

from collections.abc import Sequence

from pisync_receiver.store.types import (
    Enroll,
    EnrollmentCreate,
    EventBatch,
    Outcome,
    Submission,
    SyncReport,
    TokenCreate,
    TokenExpire,
    TokenRefused,
    TokenRevoke,
)
from pisync_receiver.store.writing import access
from pisync_receiver.store.writing.batches import store_batch
from pisync_receiver.store.writing.reports import store_report
from pisync_receiver.store.writing.states import Group
from pisync_receiver.store.writing.tables import Tables


def write_group(tables: Tables, submissions: Sequence[Submission]) -> list[Outcome]:
    """Carry them all out in the transaction that is open. What is refused is an outcome, not an error."""
    group = Group(tables)
    outcomes = [_write(group, submission) for submission in submissions]
    group.finish()
    return outcomes


def _write(group: Group, submission: Submission) -> Outcome:
    match submission:
        case EventBatch():
            return store_batch(group, submission)
        case SyncReport():
            return store_report(group, submission)
        case TokenCreate():
            return access.create_token(group, submission)
        case TokenRevoke():
            return access.revoke_token(group, submission)
        case TokenExpire():
            return access.expire_token(group, submission)
        case TokenRefused():
            access.refuse_token(group, submission)
            return None
        case EnrollmentCreate():
            return access.create_enrollment(group, submission)
        case Enroll():
            return access.enroll(group, submission)
