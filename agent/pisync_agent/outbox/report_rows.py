"""The queue of reports: at most 500 wait; beyond that, older neighbours are folded into one."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from pisync_agent.outbox.connection import Connection
from pisync_agent.outbox.models import Report
from pisync_agent.outbox.queries import queries
from pisync_agent.outbox.sound import counts, fraction, number, text
from pisync_common.models import Stamp
from pisync_common.wire import dumps

REPORTS_KEPT: Final = 500


def add(connection: Connection, report: Report) -> None:
    """Queue a report; fold older ones while there are more than REPORTS_KEPT."""
    insert(connection, report)
    while _number(connection) > REPORTS_KEPT:
        _fold(connection)


def insert(connection: Connection, report: Report) -> None:
    stamp = report.stamp
    connection.execute(
        queries()["insert_report"],
        (
            report.key, stamp.at_ms, stamp.boot_id, stamp.boottime_ms, int(stamp.clock_synced),
            report.files, dumps(dict(report.errors)), float(report.speed), report.folded,
        ),
    )  # fmt: skip


def oldest(connection: Connection) -> Report | None:
    row = connection.execute(queries()["next_report"]).fetchone()
    return None if row is None else from_row(row)


def drop(connection: Connection, report_id: int) -> None:
    connection.execute(queries()["delete_report"], (report_id,))


def waiting(connection: Connection) -> list[Report]:
    return [from_row(row) for row in connection.execute(queries()["reports"]).fetchall()]


def from_row(row: Sequence[Any]) -> Report:
    """Raises BrokenOutbox."""
    at_ms, boot_id, boottime_ms, clock_synced = row[2:6]
    return Report(
        id=number(row[0]),
        key=text(row[1]),
        stamp=Stamp(
            at_ms=number(at_ms),
            boot_id=text(boot_id),
            boottime_ms=number(boottime_ms),
            clock_synced=bool(clock_synced),
        ),
        files=number(row[6]),
        errors=counts(row[7]),
        speed=fraction(row[8]),
        folded=number(row[9]),
    )


def pair_to_fold(reports: Sequence[Report]) -> int:
    """The place of the first of two neighbours to fold: the oldest two failures, else the oldest two.

    The very first stays alone: it may be on its way, and what the receiver stored of it cannot change.
    """
    for place in range(1, len(reports) - 1):
        if reports[place].failed and reports[place + 1].failed:
            return place
    return 1


def folded(first: Report, second: Report) -> Report:
    """One report for both, under the time and key of the newer one."""
    return Report(
        id=second.id,
        key=second.key,
        stamp=second.stamp,
        files=first.files + second.files,
        errors=dict(Counter(first.errors) + Counter(second.errors)),
        speed=second.speed or first.speed,
        folded=first.folded + second.folded,
    )


def _fold(connection: Connection) -> None:
    reports = waiting(connection)
    place = pair_to_fold(reports)
    both = folded(reports[place], reports[place + 1])
    drop(connection, reports[place].id or 0)
    row = (both.files, dumps(dict(both.errors)), float(both.speed), both.folded, both.id)
    connection.execute(queries()["update_report"], row)


def _number(connection: Connection) -> int:
    return int(connection.execute(queries()["count_reports"]).fetchone()[0])
