"""The power is cut while the receiver answers: whatever a 2xx said is so afterwards.

Real processes on a real file system; see `tests.support.ext4`. PISYNC_POWER_SEED chooses other moments.
"""

import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from pisync_common.wire import encode_event
from tests.support.devices import MadeUpDevice
from tests.support.ext4 import Ext4Disk
from tests.support.processes import ReceiverProcess, wait_until
from tests.support.proof import Proof

SEED: Final = os.environ.get("PISYNC_POWER_SEED", "20261123")
ROUNDS: Final = 4
DEVICES: Final = 4
BATCH: Final = 20
PYTHON: Final = sys.executable

WEAK: Final = """
import sys
from pisync_receiver.store.sqlite import store
durable = store.make_durable
def weak(connection, path):
    durable(connection, path)
    connection.execute("PRAGMA synchronous = NORMAL")
store.make_durable = weak
from pisync_receiver.commands.cli import main
sys.exit(main())
"""
"""The receiver, without its promise."""


@pytest.fixture
def receiver(disk: Ext4Disk, tmp_path: Path) -> Iterator[ReceiverProcess]:
    """A receiver with its database on the disk; nothing is there yet, not even its folder."""
    made = ReceiverProcess(disk.path / "receiver")
    made.home.rmdir()
    made.log_file = tmp_path / "receiver.log"
    try:
        yield made
    finally:
        made.kill()


class Sender:
    """A device that posts a batch, a sync event, the next batch and so on, and remembers what each 2xx said while the
    disk had power."""

    def __init__(self, disk: Ext4Disk, receiver: ReceiverProcess, code: str, name: str) -> None:
        self._disk = disk
        self.device = MadeUpDevice(receiver.url, code, device_id=name)
        self.answers = 0
        self.watermark = 0
        self.sync_events: dict[int, dict[str, Any]] = {}
        self._batch: list[str] = []

    def run(self) -> None:
        """Until the receiver is gone. What was not answered by a 2xx is sent again."""
        with suppress(httpx.TransportError):
            while True:
                self.post_batch()
                self.post_sync_event()

    def post_batch(self) -> int:
        """The batch that was not answered last time, or the next one; the answer's status."""
        self._batch = self._batch or [self._event(self.device.seq + 1) for _ in range(BATCH)]
        answer = self.device.post_batch(self._batch)
        if answer.status_code == 200 and self._disk.powered:
            receipt = answer.json()
            assert (receipt["watermark"], receipt["rejected"]) == (self.device.seq, [])
            self.watermark, self._batch = self.device.seq, []
            self.answers += 1
        return answer.status_code

    def post_sync_event(self) -> int:
        answer = self.device.post_sync_event(total_files_synced=self.device.seq, total_errors=self.answers % 2)
        if answer.status_code == 201 and self._disk.powered:
            record = answer.json()
            self.sync_events[record["id"]] = record
            self.answers += 1
        return answer.status_code

    def check(self, proof: Proof) -> None:
        """Everything that was answered is there, once, as it was sent."""
        name, rows = self.device.device_id, proof.events(self.device.device_id)
        assert sorted(row["seq"] for row in rows) == list(range(1, len(rows) + 1))
        assert all((row["learner_id"], row["data"]) == (name, {"n": row["seq"]}) for row in rows)
        (stream,) = proof.completeness(name)["streams"]
        assert (stream["stream"], stream["missing"], stream["rejected"]) == (self.device.stream, [], 0)
        assert stream["watermark"] == len(rows) >= self.watermark
        history = self.history()
        found = {record["id"]: record for record in history}
        assert len(found) == len(history)
        assert self.sync_events.items() <= found.items()

    def history(self) -> list[dict[str, Any]]:
        """All sync events, page by page."""
        records: list[dict[str, Any]] = []
        page = f"/api/sync-event/device/{self.device.device_id}/sync-history?limit=1000"
        while page:
            answer = self.device.client.get(page).raise_for_status()
            records += answer.json()
            page = answer.links.get("next", {}).get("url", "")
        return records

    def _event(self, seq: int) -> str:
        self.device.seq = seq
        data = f'{{"n":{seq}}}'
        return encode_event(
            seq=seq, type="note.taken", stamp=self.device.stamp(), learner_id=self.device.device_id, data=data
        )


@pytest.fixture
def senders() -> Iterator[list[Sender]]:
    made: list[Sender] = []
    yield made
    for sender in made:
        sender.device.close()


def test_answered_requests_survive_power_cuts(disk: Ext4Disk, receiver: ReceiverProcess, senders: list[Sender]) -> None:
    """Cut after ten answers to each device and a moment more, again and again; the database grows meanwhile."""
    rng = random.Random(f"{SEED} receiver")
    receiver.start()
    code = receiver.enrollment_code("--uses", str(DEVICES))
    senders += [Sender(disk, receiver, code, f"pibook-{number}") for number in range(DEVICES)]
    with Proof(receiver) as proof:
        for _ in range(ROUNDS):
            work_until_the_cut(disk, receiver, senders, pause=rng.uniform(0, 0.1))
            disk.restart()
            receiver.start()
            for sender in senders:
                sender.check(proof)
        for sender in senders:
            # What was not answered is sent again, and nothing is missing.
            assert (sender.post_batch(), sender.post_sync_event()) == (200, 201)
            sender.check(proof)
            assert sender.watermark == len(proof.events(sender.device.device_id))
    receiver.stop()
    with closing(sqlite3.connect(receiver.database)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def work_until_the_cut(disk: Ext4Disk, receiver: ReceiverProcess, senders: list[Sender], *, pause: float) -> None:
    before = [sender.answers for sender in senders]
    with ThreadPoolExecutor(len(senders)) as pool:
        try:
            running = [pool.submit(sender.run) for sender in senders]
            wait_until(lambda: all(sender.answers >= n + 10 for sender, n in zip(senders, before, strict=True)), "work")
            time.sleep(pause)
            disk.cut_power()
        finally:
            receiver.kill()  # which ends the senders
    for each in running:
        each.result()


def test_first_writes_survive_power_cuts(disk: Ext4Disk, receiver: ReceiverProcess, senders: list[Sender]) -> None:
    """Each is the last thing that happens before a cut; each is needed for the next."""

    def cut() -> None:
        disk.cut_power()
        receiver.kill()
        disk.restart()
        receiver.start()

    receiver.start()  # makes the folder and the database
    cut()
    token = receiver.admin_token()
    cut()
    code = receiver.enrollment_code()
    cut()
    senders.append(Sender(disk, receiver, code, "pibook-1"))
    cut()
    assert senders[0].post_sync_event() == 201
    cut()
    assert senders[0].post_batch() == 200
    cut()
    with Proof(receiver) as proof:
        senders[0].check(proof)
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(receiver.url + "/api/devices", headers=headers, trust_env=False, timeout=60)
    assert [row["device_id"] for row in answer.json()] == ["pibook-1"]


def test_first_code_of_a_fresh_receiver_survives(disk: Ext4Disk, receiver: ReceiverProcess) -> None:
    receiver.start()
    code = receiver.enrollment_code()
    disk.cut_power()
    receiver.kill()
    disk.restart()
    receiver.start()
    MadeUpDevice(receiver.url, code).close()


@pytest.mark.parametrize(
    ("program", "survive"),
    [((PYTHON, "-m", "pisync_receiver"), True), ((PYTHON, "-c", WEAK), False)],
    ids=["FULL", "NORMAL"],
)
def test_receiver_that_commits_with_less_loses(
    disk: Ext4Disk, receiver: ReceiverProcess, senders: list[Sender], program: tuple[str, ...], survive: bool
) -> None:
    receiver.start()
    senders.append(Sender(disk, receiver, receiver.enrollment_code(), "pibook-1"))
    receiver.stop()
    receiver.program = program
    receiver.start()
    assert (senders[0].post_batch(), senders[0].post_sync_event()) == (200, 201)
    disk.cut_power()
    receiver.kill()
    disk.restart()
    receiver.start()
    with Proof(receiver) as proof:
        assert len(proof.events("pibook-1")) == (BATCH if survive else 0)
    assert len(senders[0].history()) == survive
