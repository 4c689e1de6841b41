"""Portals, filters, gateways and a receiver that wants to be left alone: the real `pisync sync` and `pisync run`.

Whatever answers: nothing is dropped, the exit code and the words say what happened and what to do, `pisync status`
says why it waits and until when, and once the way is free everything arrives.
"""

import itertools
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pytest

from pisync_common.problems import CONTENT_TYPE, problem_type
from tests.support.learning_app import Note, record_lesson
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, ReceiverProcess, wait_until
from tests.support.proof import Proof
from tests.support.raw_server import Peer, RawServer, http

PAGE = "<html><h1>Welcome to the school's network</h1></html>"
HTML = "text/html; charset=utf-8"
QUICK = ("--sync-delay", "0s", "--retry-base", "1s", "--retry-cap", "2s")
NUMBERS = itertools.count(1)
LONG_S = 600
Y2001_S = 1_000_000_000


def page(status: int, **headers: str) -> bytes:
    return http(status, PAGE, kind=HTML, **headers)


def problem(status: int, code: str, **headers: str) -> bytes:
    body = {"type": problem_type(code), "title": "T", "status": status, "detail": "the detail", "request_id": "r-1"}
    return http(status, body, kind=CONTENT_TYPE, **headers)


def dated(seconds: int) -> dict[str, str]:
    """`Retry-After` as a date, from a server whose clock shows another year than the device's."""
    return {
        "date": formatdate(Y2001_S, usegmt=True),
        "retry_after": formatdate(Y2001_S + seconds, usegmt=True),
    }


class Case(NamedTuple):
    """An answer in the receiver's place, and what the commands make of it."""

    answer: bytes
    code: int
    kind: str
    said: tuple[str, ...]
    patience: int = 0
    """Seconds for which it asks to be left alone."""


CASES = {
    "portal": Case(page(200), 3, "portal", ("answered in its place", "it may require a sign-in")),
    "a portal's 401": Case(page(401), 3, "portal", ("answered in its place",)),
    "401": Case(problem(401, "unauthorized"), 4, "auth", ("refused this device", "the detail", "an administrator")),
    "429, seconds": Case(
        problem(429, "slow_down", retry_after=str(LONG_S)),
        *(1, "http_4xx", ("429", "retries automatically, after 600 s at the earliest"), LONG_S),
    ),
    "429, date": Case(
        page(429, **dated(LONG_S)),
        *(1, "http_4xx", ("429", "retries automatically, after 600 s at the earliest"), LONG_S),
    ),
    "503, seconds": Case(
        page(503, retry_after=str(LONG_S)),
        *(1, "http_5xx", ("503", "retries automatically, after 600 s at the earliest"), LONG_S),
    ),
    "503, date": Case(
        problem(503, "overloaded", **dated(LONG_S)),
        *(1, "http_5xx", ("503", "retries automatically, after 600 s at the earliest"), LONG_S),
    ),
}


Decide = Callable[[str, int], bytes | None]
"""From a request's path and the size of its body to the answer; None passes it on."""


def passing(path: str, size: int) -> bytes | None:
    """Everything reaches the receiver."""
    return None


@dataclass(frozen=True)
class Seen:
    """A request: where it went, when it came and when its answer was about to go (monotonic seconds)."""

    path: str
    came: float
    answered: float


class Gateway:
    """Plain HTTP before the receiver at `port` of this machine. `answer` may be changed at any time."""

    def __init__(self, port: int) -> None:
        self.answer: Decide = passing
        self.seen: list[Seen] = []
        """Every request, whichever server answered it; it is here before its answer goes."""
        self._port = port
        self._server = RawServer(self._talk)

    @property
    def url(self) -> str:
        return self._server.url

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)

    def _talk(self, peer: Peer) -> None:
        while (request := peer.request()) is not None:
            came = time.monotonic()
            head, _, body = request.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            answer = self.answer(path, len(body))
            answer = self._passed_on(head, body) if answer is None else answer
            self.seen.append(Seen(path, came, time.monotonic()))
            peer.send(answer)

    def _passed_on(self, head: bytes, body: bytes) -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", self._port), timeout=DEADLINE_SECONDS) as receiver:
            receiver.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
            while data := receiver.recv(65536):
                answer += data
        return answer


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.fixture(scope="module")
def code(receiver: ReceiverProcess) -> str:
    """Enrolls every device of this file."""
    return receiver.enrollment_code("--uses", "100")


@pytest.fixture(scope="module")
def proof(receiver: ReceiverProcess) -> Iterator[Proof]:
    with Proof(receiver) as asking:
        yield asking


@pytest.fixture
def gateway(receiver: ReceiverProcess) -> Iterator[Gateway]:
    with Gateway(receiver.port) as standing:
        yield standing


@pytest.fixture
def agent(gateway: Gateway, code: str, tmp_path: Path) -> Iterator[AgentProcess]:
    """A device behind the gateway, enrolled under the name of its folder."""
    with AgentProcess(tmp_path / f"pibook-{next(NUMBERS)}", *QUICK) as made:
        made.enroll(gateway.url, code, device_id=made.home.name)
        yield made


def check_kept(agent: AgentProcess, case: Case, notes: dict[Note, int]) -> None:
    """Nothing is lost or set aside, and `status` says what is the matter."""
    status = agent.status()
    assert (status["waiting"], status["dead"], status["delivered"]) == (len(notes), 0, 0)
    assert status["last_run"]["failure"]["kind"] == case.kind
    shown = agent.command("status", code=case.code)
    assert f"failed ({case.kind})" in shown
    assert "Everything is kept" in shown
    assert f"{len(notes)} events pending" in shown


def check_failed_sync(agent: AgentProcess, case: Case) -> None:
    done = agent.run("sync")
    assert done.returncode == case.code
    for words in (f"({case.kind})", "Everything is kept", *case.said):
        assert done.stderr.count(words) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_everything_is_kept_and_explained(agent: AgentProcess, gateway: Gateway, proof: Proof, case: Case) -> None:
    """By `pisync sync` alone, then by the service: it waits as long as it was asked to, whatever is recorded meanwhile;
    a person who asks is served at once."""
    notes = record_lesson(agent, "s-1", 30)
    gateway.answer = lambda path, size: case.answer
    check_failed_sync(agent, case)
    check_kept(agent, case, notes)

    agent.start()
    wait_until(lambda: agent.status()["last_error"] is not None, "the service meets it")
    seen = len(gateway.seen)
    notes |= record_lesson(agent, "s-2", 5)
    if case.patience:
        status = agent.status()
        assert case.patience - 100 < status["next_run_in_s"] <= case.patience + 2
        assert f"failed ({case.kind})" in status["next_run_why"]
        shown = " ".join(agent.command("status", code=case.code).split())
        assert re.search(rf"next run in \d+ min: the last run failed \({case.kind}\)", shown)
        assert len(gateway.seen) == seen
    check_failed_sync(agent, case)
    check_kept(agent, case, notes)

    gateway.answer = passing
    agent.command("sync")
    proof.check_whole(agent.home.name, notes)
    assert "Traceback" not in agent.log()


@pytest.mark.parametrize(
    ("status", "headers"), [(429, dated(2)), (503, {"retry_after": "2"})], ids=["429, date", "503, seconds"]
)
def test_it_retries_automatically_and_not_too_early(
    agent: AgentProcess, gateway: Gateway, proof: Proof, status: int, headers: dict[str, str]
) -> None:
    notes = record_lesson(agent, "s-1", 30)
    before = len(gateway.seen)
    gateway.answer = lambda path, size: page(status, **headers) if len(gateway.seen) == before else None
    agent.start()
    wait_until(lambda: agent.status()["waiting"] == 0, "it is delivered")
    first, then = gateway.seen[before : before + 2]

    assert then.came - first.answered >= 2.0
    proof.check_whole(agent.home.name, notes)


@pytest.mark.parametrize("with_service", [False, True])
def test_a_gateway_that_takes_small_bodies_only(
    agent: AgentProcess, gateway: Gateway, proof: Proof, with_service: bool
) -> None:
    notes = record_lesson(agent, "s-1", 400)
    gateway.answer = lambda path, size: page(413) if size > 1500 else None
    if with_service:
        agent.start()
    agent.command("sync")

    proof.check_whole(agent.home.name, notes)
    assert agent.status()["dead"] == 0


def test_a_too_large_event_becomes_a_dead_letter_and_blocks_nothing(
    agent: AgentProcess, gateway: Gateway, proof: Proof
) -> None:
    """And it is delivered too, when the gateway has been told to let it pass."""
    before = record_lesson(agent, "s-1", 20)
    large = record_lesson(agent, "s-2", 1, noise=5_000)
    after = record_lesson(agent, "s-3", 20)
    gateway.answer = lambda path, size: page(413) if size > 3000 else None
    done = agent.run("sync")

    assert done.returncode == 1
    assert "1 event rejected and kept: see `pisync queue dead`" in done.stdout
    status = agent.status()
    assert (status["waiting"], status["dead"]) == (0, 1)
    (seq,) = large.values()
    (letter,) = agent.json("queue", "dead")
    assert (letter["seq"], letter["code"]) == (seq, "too_large")
    assert {row["seq"] for row in proof.events(agent.home.name)} == {*before.values(), *after.values()}

    gateway.answer = passing
    again = int(agent.command("queue", "requeue", str(seq)))
    agent.command("sync")
    found = {row["seq"]: row["data"] for row in proof.events(agent.home.name)}
    assert len(found) == 41
    assert len(found[again]["text"]) == 10_000
    assert agent.run("status").returncode == 0
