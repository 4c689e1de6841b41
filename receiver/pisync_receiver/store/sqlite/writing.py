"""One group of submissions, one transaction."""

from collections.abc import Sequence

from pisync_receiver.store.sqlite import access
from pisync_receiver.store.sqlite.batches import store_batch
from pisync_receiver.store.sqlite.connection import Connection, transaction
from pisync_receiver.store.sqlite.reports import store_report
from pisync_receiver.store.sqlite.states import Group
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


def write_group(connection: Connection, submissions: Sequence[Submission]) -> list[Outcome]:
    """Store them all durably, or raise and store none. What is refused is an outcome, not an error."""
    with transaction(connection):
        group = Group(connection)
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
