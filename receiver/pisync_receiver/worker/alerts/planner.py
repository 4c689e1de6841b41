"""From the crossings that wait to notices: in one transaction, by one worker at a time."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from pisync_receiver.logs import fields
from pisync_receiver.store.postgres.transactions import Database, Transaction
from pisync_receiver.worker.alerts.plan import NOTHING, Crossing, Plan, Rules, plan
from pisync_receiver.worker.alerts.words import Notice, notices
from pisync_receiver.worker.metrics import WorkerMetrics

log = logging.getLogger("pisync_receiver.alerts")

LOG: Final = "log"
"""The target that every notice has: the record of what was told."""
LOOK_SECONDS: Final = 2.0


class Planner:
    """Writes notices for every target and marks their crossings, all or nothing. Other workers see none of it until
    all of it is there, so each crossing is told of once."""

    def __init__(
        self,
        database: Database,
        targets: Sequence[str],
        *,
        rules: Rules,
        now_ms: Callable[[], int],
        metrics: WorkerMetrics,
    ) -> None:
        self._database = database
        self._targets = (LOG, *targets)
        self._rules = rules
        self._now_ms = now_ms
        self._metrics = metrics

    async def step(self) -> float:
        """Tell what is due; seconds until the next look. Raises DatabaseUnavailable."""
        async with self._database.transaction() as transaction:
            decided = await self._decide(transaction) if await transaction.alone("alerts") else NOTHING
            row = await transaction.row("alerts_waiting", targets=list(self._targets))
        self._metrics.told(len(decided.crossings))
        if row is not None:
            self._metrics.waiting(crossings=row[0], notices=row[1])
        return LOOK_SECONDS

    async def _decide(self, transaction: Transaction) -> Plan:
        now = self._now_ms()
        waiting = [_crossing(*row) for row in await transaction.rows("crossings")]
        if not waiting:
            return NOTHING
        since = now - round(self._rules.digest_every * 1000)
        row = await transaction.row("last_digest", since=since)
        last_digest_ms = None if row is None else row[0]
        decided = plan(waiting, now_ms=now, last_digest_ms=last_digest_ms, rules=self._rules)
        if decided.crossings:
            await self._write(transaction, decided, now)
        return decided

    async def _write(self, transaction: Transaction, decided: Plan, now: int) -> None:
        for notice in notices(decided, self._rules.zone):
            for target in self._targets:
                await transaction.do(
                    "add_notice", target=target, digest=notice.digest, title=notice.title, body=notice.body, now=now
                )
            _tell_log(notice)  # before the commit: a line may come twice, but none is missing
        await transaction.do("told", now=now, ids=list(decided.crossings))


def _tell_log(notice: Notice) -> None:
    log.warning(notice.title, extra=fields(alert=notice.body))


def _crossing(
    number: int,
    device_id: str,
    site: str | None,
    kind: str,
    at_ms: int,
    consecutive_failures: int,
    failing_since_ms: int | None,
    last_errors: str | None,
) -> Crossing:
    return Crossing(
        id=number,
        device_id=device_id,
        site=site,
        kind=kind,
        at_ms=at_ms,
        consecutive_failures=consecutive_failures,
        failing_since_ms=failing_since_ms,
        last_errors=last_errors,
    )
