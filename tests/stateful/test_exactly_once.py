"""The state machine: that it holds, and that it fails as soon as one of the promises it guards is broken."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pisync_agent import answers
from pisync_agent.answers import Answer
from pisync_agent.outbox import outbox as outbox_module
from pisync_common.models import Receipt
from pisync_common.wire import decode_receipt
from tests.stateful.school_life import SchoolLife
from tests.support.power_cut import Connection, Cursor, WeakConnection

SETTINGS = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# SQLite passes over some errors of a disk that is dark (a journal that cannot be deleted); apsw then tells Python.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")

UNTIL_IT_FAILS = settings(SETTINGS, phases=[Phase.generate], report_multiple_bugs=False)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_every_acknowledged_event_is_stored_exactly_once() -> None:
    run_state_machine_as_test(SchoolLife, settings=SETTINGS)


def fails(machine: type[SchoolLife]) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=UNTIL_IT_FAILS)


def test_it_fails_when_the_device_commits_with_normal() -> None:
    class Weak(SchoolLife):
        device_connection = WeakConnection

    fails(Weak)


def test_it_fails_when_the_receiver_commits_with_normal() -> None:
    class Weak(SchoolLife):
        cloud_connection = WeakConnection

    fails(Weak)


class HastyConnection(Connection):
    """Says that it has committed, and does so when it is asked for the next thing."""

    owed = False

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        if self.owed:
            self.owed = False
            super().execute("COMMIT")
        if sql == "COMMIT":
            self.owed = True
            sql = "SELECT 1"
        return super().execute(sql, parameters)


def test_it_fails_when_the_answer_comes_before_the_commit() -> None:
    class Hasty(SchoolLife):
        cloud_connection = HastyConnection

    fails(Hasty)


def test_it_fails_when_a_watermark_is_trusted_without_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any receipt moves the pointer to its watermark, whatever its stream."""

    def receipt_from(answer: Answer, *, device_id: str, stream: str) -> Receipt:
        answers.raise_fault(answer)
        if not answer.own:
            raise answers.portal("an old answer")
        try:
            return replace(decode_receipt(answer.body), device_id=device_id, stream=stream)
        except ValueError as error:
            raise answers.portal("no receipt") from error

    stuck = 0

    def settled(delivered: int, _before: int, _sent: object, receipt: Receipt, *_: object) -> int:
        nonlocal stuck
        stuck = stuck + 1 if receipt.watermark <= delivered else 0
        assert stuck < 100, "the run never ends: its batches move nothing"
        return max(delivered, receipt.watermark)

    class Trusting(SchoolLife):
        def __init__(self) -> None:
            nonlocal stuck
            stuck = 0  # state kept between two runs of a life would make the second differ
            super().__init__()

    monkeypatch.setattr(answers, "receipt_from", receipt_from)
    monkeypatch.setattr(outbox_module, "settled", settled)
    fails(Trusting)
