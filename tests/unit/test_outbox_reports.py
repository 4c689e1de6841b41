"""The queue of reports."""

import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pisync_agent.outbox import Report
from pisync_agent.outbox.report_rows import REPORTS_KEPT, folded, pair_to_fold
from pisync_common.models import Stamp
from tests.support.outboxes import STAMP, opened


def report(number: int, *, failed: bool = True, files: int = 0) -> Report:
    stamp = Stamp(at_ms=number, boot_id=STAMP.boot_id, boottime_ms=number, clock_synced=True)
    return Report(key=f"r{number}", stamp=stamp, files=files, errors={"timeout": 2} if failed else {}, speed=0.5)


def test_reports_wait_in_order_until_they_are_delivered(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.add_report(report(1))
    outbox.add_report(report(2, failed=False, files=7))
    outbox.close()
    outbox = opened(tmp_path)
    first = outbox.next_report()
    assert first is not None
    assert (first.key, first.stamp, dict(first.errors), first.speed, first.folded) == (
        "r1", report(1).stamp, {"timeout": 2}, 0.5, 1,
    )  # fmt: skip
    assert outbox.next_report() == first
    outbox.drop_report(first.id or 0)
    outbox.drop_report(first.id or 0)
    second = outbox.next_report()
    assert second is not None
    assert (second.key, second.files, second.failed) == ("r2", 7, False)
    assert outbox.state().reports_waiting == 1
    outbox.close()


def test_beyond_500_older_failures_are_folded_and_none_is_forgotten(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(REPORTS_KEPT + 50):
        outbox.add_report(report(number, failed=number != 3))
    assert outbox.state().reports_waiting == REPORTS_KEPT
    found = []
    while (each := outbox.next_report()) is not None:
        found.append(each)
        outbox.drop_report(each.id or 0)
    assert sum(each.folded for each in found) == REPORTS_KEPT + 50
    assert sum(each.errors.get("timeout", 0) for each in found) == 2 * (REPORTS_KEPT + 49)
    # The first may be on its way: it stays as it is. The success stands between failures, as it was.
    assert (found[0].key, found[0].folded) == ("r0", 1)
    assert [each.failed for each in found].count(False) == 1
    assert [each.stamp.at_ms for each in found] == sorted(each.stamp.at_ms for each in found)
    outbox.close()


@given(failures=st.lists(st.booleans(), min_size=3, max_size=30))
def test_folding_takes_neighbours_of_one_kind_where_there_are_any(failures: list[bool]) -> None:
    reports = [report(number, failed=failed) for number, failed in enumerate(failures)]
    place = pair_to_fold(reports)
    assert 1 <= place < len(reports) - 1
    both = folded(reports[place], reports[place + 1])
    if any(one and two for one, two in itertools.pairwise(failures[1:])):
        assert reports[place].failed
        assert reports[place + 1].failed
    assert both.failed == (reports[place].failed or reports[place + 1].failed)
    assert both.folded == 2
