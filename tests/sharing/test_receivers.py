"""Two receivers on one PostgreSQL with a Redis between them, which is killed, frozen and started again."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from pisync_receiver.directory import KEEP_S
from pisync_receiver.limits import BURST_S
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.receiver_process import ReceiverProcess, wait_until
from tests.support.redis import RedisProcess, needs_redis_server

pytestmark = [needs_postgres, needs_redis_server]

FAILING = "/api/sync-event/devices/repeated-failures?min_failures=1"
REPORT = {"timestamp": "2026-11-23T10:00:00Z", "total_files_synced": 3, "total_errors": 1, "internet_speed": 2.5}
RATE = 2


class Pair:
    """Two receivers, and their Redis."""

    def __init__(self, one: ReceiverProcess, other: ReceiverProcess, redis: RedisProcess) -> None:
        self.both = (one, other)
        self.one, self.other = one, other
        self.redis = redis
        self.admin = one.admin_token()
        self._devices = 0

    def device(self) -> tuple[str, str]:
        """A new device's id and token."""
        self._devices += 1
        device_id = f"pibook-{self._devices}"
        body = {"code": self.one.enrollment_code(), "device_id": device_id}
        return device_id, httpx.post(self.one.url + "/api/enroll", json=body).json()["token"]

    def get(self, receiver: ReceiverProcess, path: str, **headers: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.admin}"} | headers
        return httpx.get(receiver.url + path, headers=headers, timeout=30)

    def report(self, receiver: ReceiverProcess, device: tuple[str, str], **changes: Any) -> int:
        device_id, token = device
        body = {"device_id": device_id, **REPORT, **changes}
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.post(receiver.url + "/api/sync-event", json=body, headers=headers, timeout=30).status_code

    def failing(self, receiver: ReceiverProcess) -> set[str]:
        answer = self.get(receiver, FAILING)
        assert answer.status_code == 200, answer.text
        return {row["device_id"] for row in answer.json()}

    def sample(self, receiver: ReceiverProcess, name: str) -> float | None:
        lines = self.get(receiver, "/metrics").text.splitlines()
        values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]
        return values[0] if values else None

    def queried(self) -> float:
        return sum(self.sample(receiver, 'pisync_answers_total{found="queried"}') or 0 for receiver in self.both)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder: Path = tmp_path_factory.mktemp("sharing")
    with fresh_database() as url, RedisProcess(folder) as redis:
        arguments = ("--redis-url", redis.url, "--device-rate", str(RATE))
        one, other = (ReceiverProcess(folder / name, *arguments, database_url=url) for name in ("one", "other"))
        with one, other:
            yield Pair(one, other, redis)


def test_what_is_stored_through_one_is_seen_through_the_other_at_once(pair: Pair) -> None:
    device = pair.device()
    for _ in range(4):
        assert device[0] not in pair.failing(pair.one) | pair.failing(pair.other)
        assert pair.report(pair.one, device) == 201
        assert device[0] in pair.failing(pair.other) & pair.failing(pair.one)
        assert pair.report(pair.other, device, total_errors=0, timestamp="2026-11-23T10:00:01Z") == 201
        device = pair.device()


def test_what_one_looked_up_costs_the_other_no_query(pair: Pair) -> None:
    def asked_for_nothing() -> bool:
        path = f"{FAILING}&limit=7"
        etag = pair.get(pair.one, path).headers["ETag"]
        before = pair.queried()
        answers = [pair.get(pair.other, path), pair.get(pair.other, path, **{"If-None-Match": etag})]
        assert [answer.status_code for answer in answers] == [200, 304]
        assert answers[0].headers["ETag"] == etag
        return pair.queried() == before

    wait_until(asked_for_nothing, "both answers come within two seconds of the first")


def test_a_device_that_goes_from_one_to_the_other_has_one_rate(pair: Pair) -> None:
    device = pair.device()
    let_in = 0
    while pair.report(pair.one, device) == 201:
        let_in += 1
    assert let_in >= RATE * BURST_S
    more = 0
    while pair.report(pair.other, device) == 201:
        more += 1
    assert more < RATE * BURST_S // 2


@pytest.mark.parametrize("away", ["freeze", "kill"])
def test_nothing_breaks_while_redis_is_away(pair: Pair, away: str) -> None:
    device = pair.device()
    assert pair.report(pair.one, device) == 201
    pair.failing(pair.one)
    getattr(pair.redis, away)()
    try:
        for number in range(3):
            at = f"2026-11-23T10:01:0{number}Z"
            for receiver, errors in ((pair.one, 1), (pair.other, 0)):
                assert pair.report(receiver, device, total_errors=errors, timestamp=at) == 201
                for each in pair.both:
                    assert (device[0] in pair.failing(each)) is bool(errors)
        wait_until(lambda: pair.sample(pair.one, "pisync_redis_up") == 0, "it is noticed")
        code = httpx.post(pair.one.url + "/api/enroll", json={"code": pair.one.enrollment_code()}).status_code
        assert code == 201
    finally:
        pair.redis.thaw() if away == "freeze" else pair.redis.start()

    def is_back() -> bool:
        pair.failing(pair.one)
        return pair.sample(pair.one, "pisync_redis_up") == 1

    wait_until(is_back, "it is used again")
    assert pair.report(pair.other, pair.device()) == 201
    test_what_is_stored_through_one_is_seen_through_the_other_at_once(pair)


def test_a_token_that_was_revoked_anywhere_ends_everywhere(pair: Pair) -> None:
    viewer = pair.one.admin_token("viewer")
    headers = {"Authorization": f"Bearer {viewer}"}

    def status(receiver: ReceiverProcess) -> int:
        return httpx.get(receiver.url + "/api/devices", headers=headers).status_code

    assert [status(receiver) for receiver in pair.both] == [200, 200]
    rows = pair.one.json("token", "list")
    pair.one.command("token", "revoke", max((row["id"] for row in rows), key=int))
    for receiver in pair.both:
        wait_until(partial(lambda one: status(one) == 401, receiver), "it is refused", seconds=KEEP_S + 30)


def test_no_secret_of_redis_is_told(tmp_path: Path) -> None:
    with fresh_database() as url:
        receiver = ReceiverProcess(tmp_path, "--redis-url", "redis://:planted@127.0.0.1:1/0", database_url=url)
        with receiver:
            token = receiver.admin_token()
            answer = httpx.get(receiver.url + "/api/devices", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 200
            receiver.stop()
        assert "redis://127.0.0.1:1/0 does not answer" in receiver.log()
        assert "planted" not in receiver.log()
