"""A round of the fault campaign: 10,000 acknowledged events, a hundred faults, and each event is stored once.

PISYNC_CHAOS_SEED plays other faults in another order; `scripts/campaign` plays rounds for hours.
"""

import os
from pathlib import Path

import pytest

from tests.support.campaign import DECK, campaign

SEED = int(os.environ.get("PISYNC_CHAOS_SEED", "20261123"))
EVENTS = 10_000


# The proxy breaks connections at any moment; asyncio then leaves transports and sockets to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*(_SelectorTransport|socket):pytest.PytestUnraisableExceptionWarning"
)
def test_each_acknowledged_event_is_stored_once_after_a_round_of_faults(tmp_path: Path) -> None:
    verdict = campaign(tmp_path, seed=SEED, events=EVENTS)
    print(verdict.table())

    assert verdict.good, verdict.table()
    assert verdict.acknowledged >= EVENTS
    assert verdict.faults == DECK
