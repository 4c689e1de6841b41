"""Devices whose outbox and delivery are real, and a link to a simulated cloud that does what links do.

Time, randomness and the network are injected, and a device's power can be cut.
"""

import json
import shutil
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Final

import httpx

from pisync_agent.client import ReceiverClient
from pisync_agent.errors import AgentError
from pisync_agent.identity import Identity
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.sync.batches import BatchSize
from pisync_agent.sync.progress import SyncResult
from pisync_agent.sync.run import Delivery
from pisync_common.models import Stamp
from pisync_common.problems import CONTENT_TYPE, problem_type
from pisync_common.wire import NONCE_HEADER
from tests.stateful.simulated_cloud import Cloud
from tests.support.power_cut import Connection, Disk, PowerCut

DEVICE: Final = "pibook-1"
URL: Final = "http://127.0.0.1:9"
EPOCH_MS: Final = 1_795_424_400_000


class Hop(StrEnum):
    """What happens to one request."""

    ARRIVES = "arrives"
    LOST = "lost on the way there"
    ANSWER_LOST = "its answer is lost"
    TWICE = "arrives twice"
    LATE = "arrives after the device has given up"
    OLD_ANSWER = "a proxy answers with an answer of before"
    PORTAL = "a captive portal answers"
    GATEWAY = "a gateway answers 502"
    BUSY = "the receiver asks for patience"
    TOO_LARGE = "a proxy finds it too large"
    CLOUD_KILLED = "the receiver is killed while it stores it"
    CLOUD_DARK = "the receiver's power is cut while it stores it"
    DEVICE_KILLED = "the agent is killed while it waits for the answer"
    DEVICE_DARK = "the device's power is cut while it waits for the answer"


class DeviceClock:
    """A device's clocks: boot time goes on, the wall clock jumps."""

    def __init__(self) -> None:
        self._boots = 0
        self._ms = 0
        self.ahead_ms = 0
        self.synced = False
        self.boot()

    def boot(self) -> None:
        self._boots += 1
        self._booted_ms = self._ms

    def stamp(self) -> Stamp:
        self._ms += 1
        return Stamp(
            at_ms=self.wall_ms(),
            boot_id=f"b0070000-0000-4000-8000-{self._boots:012}",
            boottime_ms=self._ms - self._booted_ms,
            clock_synced=self.synced,
        )

    def monotonic(self) -> float:
        return (self._ms - self._booted_ms) / 1000

    def wall_ms(self) -> int:
        return EPOCH_MS + self._ms + self.ahead_ms

    def pass_s(self, seconds: int) -> None:
        self._ms += seconds * 1000


class Link(httpx.BaseTransport):
    """What a device's requests meet: `hops` are used up one by one, then all arrive."""

    def __init__(self, cloud: Cloud, device: "Device") -> None:
        self._cloud = cloud
        self._device = device
        self.hops: deque[Hop] = deque()
        self.late: list[httpx.Request] = []
        self.operations = 0
        """After how many of the receiver's writes CLOUD_KILLED and CLOUD_DARK strike."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        match self.hops.popleft() if self.hops else Hop.ARRIVES:
            case Hop.ARRIVES:
                return self._arrive(request)
            case Hop.LOST:
                raise httpx.ReadTimeout("lost")
            case Hop.ANSWER_LOST:
                self._arrive(request)
                raise httpx.ReadError("the answer is lost")
            case Hop.TWICE:
                self._arrive(request)
                return self._arrive(request)
            case Hop.LATE:
                self.late.append(request)
                raise httpx.ReadTimeout("late")
            case Hop.OLD_ANSWER:
                return self._device.old_answer() or self._arrive(request)
            case Hop.PORTAL:
                return httpx.Response(200, html="<h1>Welcome</h1>")
            case Hop.GATEWAY:
                return httpx.Response(502, html="<h1>Bad gateway</h1>")
            case Hop.BUSY:
                problem = {"type": problem_type("overloaded"), "detail": "later"}
                nonce = request.headers[NONCE_HEADER]
                headers = {"Retry-After": "7", "Content-Type": CONTENT_TYPE, NONCE_HEADER: nonce}
                return httpx.Response(503, headers=headers, content=json.dumps(problem))
            case Hop.TOO_LARGE:
                return httpx.Response(413)
            case Hop.CLOUD_KILLED | Hop.CLOUD_DARK as hop:
                return self._arrive_at_dying(request, power_lost=hop is Hop.CLOUD_DARK)
            case Hop.DEVICE_KILLED | Hop.DEVICE_DARK as hop:
                self._arrive(request)
                self._device.power_lost = hop is Hop.DEVICE_DARK
                raise PowerCut

    def deliver_late(self) -> None:
        """Let late requests arrive; their answers go nowhere."""
        for request in self.late:
            self._arrive(request)
        self.late.clear()

    def _arrive(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/events":
            answer = _answer(200, request, self._cloud.post_batch(request.content))
        else:
            key = request.headers["Idempotency-Key"]
            answer = _answer(201, request, self._cloud.post_sync_event(request.content, key))
        self._device.answers.append((request.url.path, answer))
        return _again(answer)

    def _arrive_at_dying(self, request: httpx.Request, *, power_lost: bool) -> httpx.Response:
        self._cloud.disk.fail_after(self.operations)
        try:
            return self._arrive(request)
        except PowerCut:
            raise httpx.ReadError("the receiver is gone") from None
        finally:
            self._cloud.restart(power_lost=power_lost)


class Device:
    """One device: a folder on a disk, an agent that runs on it, and every event that `record` acknowledged here."""

    def __init__(
        self,
        home: Path,
        cloud: Cloud,
        *,
        random: Random,
        connection: type[Connection] = Connection,
        keep_delivered: int = 2**25,
    ) -> None:
        self.home = home
        self.disk = Disk(random=random, connection=connection)
        self.clock = DeviceClock()
        self.link = Link(cloud, self)
        self.recorded: dict[int, tuple[str, int]] = {}
        """(stream, seq) of each acknowledged event as `append` returned it."""
        self.answers: list[tuple[str, httpx.Response]] = []
        self.power_lost = False
        self._cloud = cloud
        self._random = random
        self._connection = connection
        self._limits = OutboxLimits(keep_delivered_bytes=keep_delivered)
        self._start()

    def _start(self) -> None:
        self.outbox: Outbox = open_outbox(
            self.home,
            limits=self._limits,
            clock=self.clock,
            connect=self.disk.connect,
            random_hex=self._hex,
            free_bytes=lambda folder: 2**30,
        )
        identity = Identity(url=URL, device_id=DEVICE, token="psd_" + "t" * 43)
        self.delivery = Delivery(
            outbox=self.outbox,
            client=ReceiverClient(identity, clock=self.clock, transport=self.link),
            clock=self.clock,
            batch_size=BatchSize(first=600, most=1200),  # a few events a batch
            link=lambda: True,
            random_hex=self._hex,
        )

    def _hex(self, size: int) -> str:
        return self._random.randbytes(size).hex()

    def record(self, numbers: Iterable[int], *, keyed: bool = False) -> list[int | AgentError]:
        """Record events in one call, as several apps at once do; with `keyed` each has its number for a key."""
        wanted = list(numbers)
        results = self.outbox.append([self._event(number, keyed=keyed) for number in wanted])
        for number, result in zip(wanted, results, strict=True):
            assert isinstance(result, int), result
            self.recorded[number] = (self.outbox.stream, result)
        return results

    def _event(self, number: int, *, keyed: bool) -> NewEvent:
        id = f"k-{number}" if keyed else None
        return NewEvent.create("note.taken", stamp=self.clock.stamp(), learner_id="s-1", data={"n": number}, id=id)

    def sync(self, hops: Iterable[Hop] = (), *, operations: int = 0) -> SyncResult:
        """Make a requested sync run. Raises PowerCut."""
        self.link.hops = deque(hops)
        self.link.operations = operations
        try:
            return self.delivery.run(probe=True)
        finally:
            self.link.hops.clear()

    def requeue_dead(self) -> None:
        """As a technician does with events that were refused alone, by a proxy say."""
        with self._reader() as reader:
            letters = reader.dead_letters()
        for letter in letters:
            if letter.requeued_as is None and letter.code == "too_large":
                self.outbox.requeue(letter.seq)

    def restart(self, *, power_lost: bool) -> None:
        """The agent ends without a word, alone or with the whole device, and starts again."""
        stream = self.outbox.stream
        self.disk.restart(power_lost=power_lost)
        if power_lost:
            self.clock.boot()
        self._start()
        # No damage was done: if the outbox has begun another stream, then because a conflict asked for it.
        assert self.outbox.stream == stream or not [
            each for each in self.outbox.state().salvaged if "broken" in each.file
        ]

    def stop(self) -> None:
        """The agent ends as it should."""
        self.outbox.close()

    def clone(self, home: Path) -> "Device":
        """A second device from a copy of this device's card. This device stops for it, and starts again."""
        self.stop()
        shutil.copytree(self.home, home)
        self._start()
        twin = Device(home, self._cloud, random=self._random, connection=self._connection)
        twin.recorded = dict(self.recorded)
        return twin

    def old_answer(self) -> httpx.Response | None:
        """Some answer of before to a batch, of whatever stream."""
        batches = [answer for path, answer in self.answers if path == "/api/events"]
        return _again(self._random.choice(batches)) if batches else None

    def numbers(self) -> set[int]:
        """Return what the outbox holds, dead letters that were not requeued included."""
        with self._reader() as reader:
            texts = [body for _, body, _ in reader.list_events(0, 2**31)]
            texts += [letter.body for letter in reader.dead_letters() if letter.requeued_as is None]
        return {json.loads(text)["data"]["n"] for text in texts}

    def _reader(self) -> OutboxReader:
        return OutboxReader(self.home, connect=self.disk.connect)

    def close(self) -> None:
        self.disk.close()


def _answer(status: int, request: httpx.Request, body: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/json", NONCE_HEADER: request.headers[NONCE_HEADER]}
    return httpx.Response(status, headers=headers, content=body)


def _again(answer: httpx.Response) -> httpx.Response:
    """The same answer, unread."""
    return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
