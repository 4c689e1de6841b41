"""The receiver's life under load: what was answered is there after any end, and a graceful end answers all it took."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.devices import MadeUpDevice
from tests.support.processes import ReceiverProcess, listens, wait_until

DEVICES = 4


class Load:
    """Devices that post batches and reports until the receiver is gone, and remember what was answered."""

    def __init__(self, receiver: ReceiverProcess) -> None:
        code = receiver.enrollment_code("--uses", str(DEVICES))
        self.watermarks: dict[str, int] = {}
        self.reports: dict[str, set[int]] = {}
        self.answers = 0
        self._devices = [MadeUpDevice(receiver.url, code, device_id=f"pibook-{index}") for index in range(DEVICES)]
        self._threads = [threading.Thread(target=self._post, args=(device,)) for device in self._devices]

    def _post(self, device: MadeUpDevice) -> None:
        reports = self.reports.setdefault(device.device_id, set())
        with contextlib.suppress(httpx.TransportError):
            while True:
                batch = device.post_batch(device.events(20))
                if batch.status_code != 200:
                    return
                self.watermarks[device.device_id] = batch.json()["watermark"]
                report = device.post_sync_event()
                if report.status_code != 201:
                    return
                reports.add(report.json()["id"])
                self.answers += 1

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside the block they post; at its end they have noticed that the receiver is gone."""
        for thread in self._threads:
            thread.start()
        try:
            wait_until(lambda: self.answers >= 40, "the devices are answered")
            yield
        finally:
            for thread in self._threads:
                thread.join(60)
            for device in self._devices:
                device.close()

    def check(self, receiver: ReceiverProcess) -> None:
        """Everything that was answered is stored."""
        token = receiver.admin_token()
        with httpx.Client(
            base_url=receiver.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=60
        ) as client:
            for device, watermark in self.watermarks.items():
                streams = client.get(f"/api/devices/{device}/completeness").json()["streams"]
                assert streams[0]["watermark"] >= watermark > 0
                assert streams[0]["missing"] == []
            for device, reports in self.reports.items():
                assert reports <= {row["id"] for row in receiver.json("history", device, "--all")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_that_was_answered_is_lost(tmp_path: Path, number: signal.Signals) -> None:
    with ReceiverProcess(tmp_path) as receiver:
        load = Load(receiver)
        with load.running():
            code = receiver.stop() if number == signal.SIGTERM else receiver.kill()
        assert code == -number
        receiver.start()
        load.check(receiver)


def test_a_graceful_end_answers_the_request_that_is_under_way(tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path, "--log-level", "debug") as receiver:
        with MadeUpDevice(receiver.url, receiver.enrollment_code(), device_id="pibook-1") as device:
            request = device.client.build_request(
                "POST",
                "/api/sync-event",
                json={
                    "device_id": "pibook-1",
                    "timestamp": "2026-11-23T10:00:00.000Z",
                    "total_files_synced": 1,
                    "total_errors": 0,
                    "internet_speed": 1,
                },
            )
        head = f"POST /api/sync-event HTTP/1.1\r\nAuthorization: Bearer {device.token}\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in request.headers.items() if name != "authorization"
        )
        body = request.read()
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=60) as slow:
            slow.sendall(head.encode() + b"\r\n" + body[:10])
            for _ in range(2):  # answered after the receiver has read what came before
                httpx.get(receiver.url + "/healthz", trust_env=False, timeout=60)
            stopping = threading.Thread(target=receiver.stop)
            stopping.start()
            wait_until(
                lambda: "Waiting for connections to close" in receiver.log(), "the receiver waits for the request"
            )
            assert not listens(receiver.port)
            slow.sendall(body[10:])
            assert slow.recv(65536).startswith(b"HTTP/1.1 201")
        stopping.join()
        receiver.start()
        assert len(receiver.json("history", "pibook-1")) == 1


def test_a_graceful_end_leaves_nothing_beside_the_database(tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path) as receiver:
        with MadeUpDevice(receiver.url, receiver.enrollment_code(), device_id="pibook-1") as device:
            device.post_batch(device.events(100))
        assert receiver.stop() == -signal.SIGTERM
        assert {file.name for file in tmp_path.iterdir()} == {"receiver.db", "receiver.db.lock", "receiver.log"}


def test_systemd_is_notified_of_start_and_stop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(60)
        systemd.bind(str(tmp_path / "notify"))
        with ReceiverProcess(tmp_path / "receiver", environ={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as receiver:
            assert systemd.recv(100) == b"READY=1"
            assert receiver.stop() == -signal.SIGTERM
            assert systemd.recv(100) == b"STOPPING=1"


def test_the_last_access_lines_are_written_at_the_end(tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path) as receiver:
        for _ in range(3):
            httpx.get(receiver.url + "/healthz", trust_env=False, timeout=60)
        receiver.stop()
        assert receiver.log().count('"route":"/healthz"') == 3


def test_a_signal_before_it_listens_ends_it_too(tmp_path: Path) -> None:
    receiver = ReceiverProcess(tmp_path)
    for _ in range(3):
        starting = threading.Thread(target=lambda: _start_and_ignore(receiver))
        starting.start()
        wait_until(lambda: receiver._process is not None, "the process is there")
        assert receiver.stop() == -signal.SIGTERM
        starting.join()


def test_tokens_and_commands_survive_a_kill(tmp_path: Path) -> None:
    with ReceiverProcess(tmp_path) as receiver:
        token = receiver.admin_token()
        receiver.kill()
        assert (tmp_path / "receiver.db.sock").exists()
        other = receiver.admin_token("viewer")
        receiver.start()
        for secret in (token, other):
            answer = httpx.get(
                receiver.url + "/api/devices", headers={"Authorization": f"Bearer {secret}"}, trust_env=False
            )
            assert answer.status_code == 200


def _start_and_ignore(receiver: ReceiverProcess) -> None:
    with contextlib.suppress(RuntimeError):
        receiver.start()
