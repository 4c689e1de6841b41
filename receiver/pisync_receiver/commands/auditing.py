"""The audit log: show it, and check that it is as it was written."""

import re
from typing import Final

import msgspec

from pisync_receiver.api.audit import AUDIT
from pisync_receiver.commands.context import Context, arg, command, rows_of
from pisync_receiver.domain.audit import AuditRecord, Chain
from pisync_receiver.errors import ReceiverError, WrongUsage

_PAGE: Final = "1000"
_HASH: Final = re.compile(r"[0-9a-f]{64}")


class AuditBroken(ReceiverError):
    """The audit log is not as it was written."""

    code = "audit_broken"


@command(
    "audit list --since 7d --act token.revoke",
    *rows_of(AUDIT),
    words=2,
)
def audit_list(context: Context) -> None:
    """Show who did what, and from where."""
    context.pages("/api/audit", AUDIT, ("id", "at", "actor", "address", "act", "target", "detail"))


@command(
    "audit verify --expect 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    arg("--expect", metavar="HASH", help="a head that an earlier `audit verify` printed: it must still be in the log"),
    words=2,
)
def audit_verify(context: Context) -> None:
    """Check that no entry of the audit log was changed, deleted, inserted or moved since it was written."""
    expected = context.arguments.expect
    if expected is not None and not _HASH.fullmatch(expected):
        raise WrongUsage(f"--expect {expected!r}: not a head that `audit verify` prints")
    chain = Chain(expected)
    given = {"order": "oldest", "limit": _PAGE}
    cursor: str | None = ""
    with context.api() as api:
        while cursor is not None:
            rows, cursor = api.page("/api/audit", given)
            for record in msgspec.convert(rows, list[AuditRecord]):
                if (problem := chain.add(record)) is not None:
                    raise AuditBroken(
                        f"{problem}; the {chain.number:,} entries before it are as they were written. Someone changed "
                        "the database past the receiver: compare it with a backup, and change the database's password"
                    )
            given["cursor"] = cursor or ""
    if not chain.found:
        raise AuditBroken(
            f"the {chain.number:,} entries follow from each other, but none has the hash {expected}: entries were cut "
            "off at the end, or the log was written again. Compare it with a backup"
        )
    context.result(f"{chain.number:,} entries, each as it was written; the head is {chain.head}")
    context.remark("Write the head down elsewhere: `audit verify --expect HEAD` then finds entries cut off at the end.")
