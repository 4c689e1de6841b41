"""One sync run after the other: builds what delivers from the identity, and notes what came of each run."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pisync_agent import identity as identities
from pisync_agent.client import ReceiverClient
from pisync_agent.clock import Clock
from pisync_agent.connectivity import has_link
from pisync_agent.delivery import Delivery, Progress, SyncResult
from pisync_agent.errors import NotEnrolled
from pisync_agent.identity import Identity
from pisync_agent.outbox import Outbox
from pisync_agent.status import LAST_RUN


class Runner:
    """Makes sync runs, in the syncer's thread. `reload` and `link` may be called from another one."""

    def __init__(self, home: Path, *, outbox: Outbox, clock: Clock, stopping: Callable[[], bool]) -> None:
        self._home = home
        self._outbox = outbox
        self._clock = clock
        self._stopping = stopping
        self._identity: Identity | None = None
        self._client: ReceiverClient | None = None
        self._delivery: Delivery | None = None
        self.reload()

    @property
    def enrolled(self) -> bool:
        return self._identity is not None

    def reload(self) -> None:
        """Look at the identity again; the next run uses it. One that cannot be used is none."""
        try:
            self._identity = identities.load(self._home)
        except NotEnrolled:
            self._identity = None

    def link(self) -> bool:
        """Whether there is a way to the receiver, as far as this device can tell without a packet."""
        identity = self._identity
        return identity is not None and has_link(identity.host)

    def run(self, *, probe: bool, progress: Callable[[Progress], None]) -> SyncResult:
        """One sync run. Failures of delivery are in the result; raises NotEnrolled, or what the outbox met."""
        result = self._current().run(probe=probe, progress=progress)
        if not result.offline:
            note = {"at_ms": self._clock.wall_ms()} | result_fields(result)
            self._outbox.set_note(LAST_RUN, json.dumps(note))
        return result

    def close(self) -> None:
        """Close the connection, from the thread that used it last."""
        if self._client is not None:
            self._client.close()
            self._client = self._delivery = None

    def _current(self) -> Delivery:
        """What delivers under the identity as it is now."""
        identity = self._identity
        if identity is None:
            raise NotEnrolled("this device is not enrolled")
        if self._client is None or self._client.identity != identity:
            self.close()
            self._client = ReceiverClient(identity, clock=self._clock)
            self._delivery = None
        if self._delivery is None:
            self._delivery = Delivery(self._outbox, self._client, clock=self._clock, stopping=self._stopping)
        return self._delivery


def result_fields(result: SyncResult) -> dict[str, Any]:
    """A sync run as `sync --json` prints it."""
    failure = result.failure
    return {
        "delivered": result.delivered,
        "duplicates": result.duplicates,
        "rejected": result.rejected,
        "waiting": result.waiting,
        "errors": dict(result.errors),
        "seconds": round(result.seconds, 3),
        "bytes_sent": result.bytes_sent,
        "speed_mbit": result.speed_mbit,
        "offline": result.offline,
        "failure": failure and {"code": failure.code, "kind": failure.kind, "detail": str(failure)},
    }


def progress_fields(progress: Progress) -> dict[str, Any]:
    """Progress as it goes over the socket."""
    return dataclasses.asdict(progress)
