"""An identity belongs to one machine, a stream to one device id."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import pisync_agent.identity as identities
from pisync_agent.enrollment.binding import begin_stream_of, bound
from pisync_agent.enrollment.machine import Machine
from pisync_agent.errors import StoreUnusable
from pisync_agent.identity import Identity
from pisync_agent.outbox.models import DEVICE
from pisync_agent.outbox.outbox import Outbox
from tests.support.outboxes import bodies, deliver, events, opened

HERE = Machine(board="10000000a1b2c3d4", system="1" * 32)
ELSEWHERE = Machine(board="10000000ffff0001", system="1" * 32)
MINE = Identity(url="https://r.example", device_id="mine", token="psd_x", machine=HERE.fingerprint)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with closing(opened(tmp_path)) as made:
        yield made


def numbers(outbox: Outbox) -> list[int]:
    return [json.loads(body)["data"]["n"] for body in bodies(outbox)]


def test_an_identity_is_used_on_its_machine_alone(tmp_path: Path, outbox: Outbox) -> None:
    assert bound(tmp_path, outbox, None, HERE) is None
    assert bound(tmp_path, outbox, MINE, HERE) == MINE
    assert bound(tmp_path, outbox, MINE, Machine()) == MINE
    assert bound(tmp_path, outbox, MINE, ELSEWHERE) is None
    assert identities.load(tmp_path) is None, "nothing was to be stored"


def test_it_is_bound_to_what_becomes_known(tmp_path: Path, outbox: Outbox) -> None:
    unbound = Identity(url=MINE.url, device_id="mine", token="psd_x")
    assert bound(tmp_path, outbox, unbound, Machine()) == unbound
    assert bound(tmp_path, outbox, unbound, HERE) == MINE
    assert identities.load(tmp_path) == MINE

    reinstalled = Machine(board=HERE.board, system="2" * 32)
    kept = bound(tmp_path, outbox, MINE, reinstalled)
    assert kept is not None
    assert kept.machine == reinstalled.fingerprint


def test_a_copy_takes_along_what_it_recorded_on_its_machine(tmp_path: Path, outbox: Outbox) -> None:
    outbox.append(events(3))
    bound(tmp_path, outbox, MINE, HERE)
    deliver(outbox, 1)
    for _ in range(2):  # the boundary is where it was first met
        assert bound(tmp_path, outbox, MINE, ELSEWHERE) is None
        outbox.append(events(2, first=outbox.state().last_seq + 1))
    stream = outbox.stream
    begin_stream_of(outbox, "copy")

    assert outbox.stream != stream
    assert numbers(outbox) == [4, 5, 6, 7]
    assert "2 events that were pending when it was copied are for mine" in outbox.state().salvaged[-1].reason
    assert outbox.note(DEVICE) == "copy"
    begin_stream_of(outbox, "copy")
    assert numbers(outbox) == [4, 5, 6, 7]


def test_a_moved_card_keeps_everything(tmp_path: Path, outbox: Outbox) -> None:
    outbox.append(events(3))
    bound(tmp_path, outbox, MINE, HERE)
    bound(tmp_path, outbox, MINE, ELSEWHERE)
    accepted = Identity(url=MINE.url, device_id="mine", token="psd_x", machine=ELSEWHERE.fingerprint)
    stream = outbox.stream
    assert bound(tmp_path, outbox, accepted, ELSEWHERE) == accepted
    begin_stream_of(outbox, "mine")
    assert (outbox.stream, numbers(outbox)) == (stream, [1, 2, 3])

    begin_stream_of(outbox, "later another")
    assert numbers(outbox) == [1, 2, 3]


def test_an_empty_stream_goes_on_under_another_id(tmp_path: Path, outbox: Outbox) -> None:
    bound(tmp_path, outbox, MINE, HERE)
    stream = outbox.stream
    begin_stream_of(outbox, "another")

    assert (outbox.stream, outbox.note(DEVICE)) == (stream, "another")


def test_a_failing_card_does_not_keep_the_service_from_starting(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, value: str) -> None:
        raise StoreUnusable("read-only")

    monkeypatch.setattr(outbox, "set_note", fails)
    assert bound(tmp_path, outbox, MINE, HERE) == MINE
    assert bound(tmp_path, outbox, MINE, ELSEWHERE) is None
