"""A receiver's other addresses: announced by it, named by a person, used while the first is away."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import pisync_agent.identity as identities
from pisync_agent.clock import SystemClock
from pisync_agent.commands.cli import main
from pisync_agent.enrollment.addresses import AGAIN_S, Announcements
from pisync_agent.enrollment.machine import Machine
from pisync_agent.errors import Unreachable
from pisync_agent.identity import Identity
from pisync_agent.outbox.models import LAST_RUN
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.service.sync_runner import PREFERRED_S, SyncRunner
from pisync_agent.sync.progress import SyncResult
from pisync_common.models import Receipt, Stamp
from pisync_common.wire import RECEIVER_HEADER
from pisync_receiver.app import AppSettings, Receiver
from tests.support.live_receiver import DEVICE, UNCACHED, Live, live_receiver, serving
from tests.support.outboxes import deliver, events, opened, receipt


@dataclass
class ShiftedClock:
    """This machine's clock, and time that has passed since by the test's word."""

    passed: float = 0.0
    real: SystemClock = field(default_factory=SystemClock)

    def stamp(self) -> Stamp:
        return self.real.stamp()

    def monotonic(self) -> float:
        return self.real.monotonic() + self.passed


@dataclass(kw_only=True)
class Device:
    """An enrolled device's runner, without the thread that decides when to run."""

    home: Path
    outbox: Outbox
    clock: ShiftedClock
    runner: SyncRunner

    def sync(self) -> SyncResult:
        return self.runner.run(probe=True, progress=lambda progress: None)

    def record_and_sync(self) -> SyncResult:
        self.outbox.append(events(1))
        return self.sync()

    @property
    def urls(self) -> tuple[str, ...]:
        kept = identities.load(self.home)
        assert kept is not None
        return (kept.url, *kept.others)


@contextmanager
def device(home: Path, live: Live, url: str, *others: str) -> Iterator[Device]:
    """A device that was enrolled at `live`, and knows it by these addresses."""
    identities.save(home, Identity(url=url, device_id=DEVICE, token=live.secrets["device"], others=others))
    with closing(opened(home)) as outbox:
        clock = ShiftedClock()
        runner = SyncRunner(home=home, outbox=outbox, clock=clock, stopping=lambda: False, here=Machine())
        runner.reload()
        try:
            yield Device(home=home, outbox=outbox, clock=clock, runner=runner)
        finally:
            runner.close()


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The receiver at its new address."""
    with live_receiver(tmp_path_factory.mktemp("new")) as running:
        yield running


@contextmanager
def old_receiver(new: Live, announced: str) -> Iterator[str]:
    """The same receiver, with the same database, at an old address that announces another."""
    settings = replace(UNCACHED, announce_url=announced)
    receiver = Receiver.create(new.store, settings, now_ms=new.receiver.services.now_ms)
    with serving(receiver, new.loop) as url:
        yield url


@pytest.fixture
def dead_url() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_an_announced_address_is_taken_up_and_the_old_one_kept(new: Live, tmp_path: Path) -> None:
    with ExitStack() as old_runs:
        old = old_runs.enter_context(old_receiver(new, new.url))
        with device(tmp_path, new, old) as made:
            assert made.record_and_sync().delivered == 1
            assert made.urls == (new.url, old)
            old_runs.close()
            assert made.record_and_sync().delivered == 1
            assert made.record_and_sync().failure is None


def test_the_old_address_is_used_where_the_new_one_fails_later(new: Live, dead_url: str, tmp_path: Path) -> None:
    with old_receiver(new, dead_url) as old, device(tmp_path, new, dead_url, old) as made:
        assert made.record_and_sync().delivered == 1
        assert made.urls == (dead_url, old)


def test_the_receipt_is_stored_before_an_announced_address_is_tried(new: Live, tmp_path: Path) -> None:
    stored = []

    def prove(*_: object, **__: object) -> Receipt:
        with OutboxReader(tmp_path) as outbox:
            stored.append((outbox.state().delivered, outbox.note(LAST_RUN) is not None))
        raise Unreachable("no answer", kind="timeout")

    with old_receiver(new, "http://127.0.0.1:9") as old, device(tmp_path, new, old) as made:
        made.runner._announcements.prove = prove
        assert made.record_and_sync().delivered == 1

    assert stored == [(1, True)]


def test_an_announced_address_that_fails_is_tried_once_a_day(
    new: Live, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with old_receiver(new, url) as old, device(tmp_path, new, old) as made:
        for _ in range(3):
            assert made.record_and_sync().delivered == 1
        assert caplog.text.count("which is not used") == 1
        assert made.urls == (old,)
        made.clock.passed += AGAIN_S
        made.sync()
        assert caplog.text.count("which is not used") == 2


def test_an_announced_receiver_that_does_not_know_the_device_is_not_used(
    new: Live, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        live_receiver(tmp_path) as other,
        old_receiver(new, other.url) as old,
        device(tmp_path / "home", new, old) as made,
    ):
        assert made.record_and_sync().delivered == 1
        assert made.urls == (old,)
    assert "refused this device" in caplog.text
    assert new.secrets["device"] not in caplog.text


@pytest.mark.parametrize(
    ("by", "url", "watermark", "taken"),
    [
        ("https://old.example", "https://new.example", 3, True),
        ("https://old.example", "https://new.example", 2, False),
        ("https://old.example", "http://127.0.0.1:8080", 3, False),
        ("https://old.example", "http://new.example", 3, False),
        ("https://old.example", "https://user:x@new.example", 3, False),
        ("https://old.example", "nonsense", 3, False),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8081", 3, True),
    ],
)
def test_an_address_is_believed_as_far_as_the_receiver_is(
    tmp_path: Path, by: str, url: str, watermark: int, taken: bool
) -> None:
    with closing(opened(tmp_path)) as outbox:
        outbox.append(events(3))
        deliver(outbox, 3)

        def prove(*_: object, **__: object) -> Receipt:
            return receipt(outbox, watermark)

        announcements = Announcements(home=tmp_path, outbox=outbox, clock=SystemClock(), prove=prove)
        identity = Identity(url=by, device_id="mine", token="psd_x")
        identities.save(tmp_path, identity)
        moved = announcements.follow(identity, url, by=by)

    assert (moved.url, moved.others) == ((url, (by,)) if taken else (by, ()))
    assert identities.load(tmp_path) == moved


@pytest.mark.parametrize("again", [Identity(url="https://school.example", device_id="other", token="psd_y"), None])
def test_what_a_person_does_while_an_address_is_proved_stays(tmp_path: Path, again: Identity | None) -> None:
    identity = Identity(url="https://old.example", device_id="mine", token="psd_x")
    identities.save(tmp_path, identity)
    with closing(opened(tmp_path)) as outbox:

        def prove(*_: object, **__: object) -> Receipt:
            identities.path(tmp_path).unlink()
            if again is not None:
                identities.save(tmp_path, again)
            return receipt(outbox, 0)

        announcements = Announcements(home=tmp_path, outbox=outbox, clock=SystemClock(), prove=prove)
        assert announcements.follow(identity, "https://new.example", by=identity.url) is identity

    assert identities.load(tmp_path) == again


def test_two_receivers_that_announce_each_other_are_followed_once_a_day(tmp_path: Path) -> None:
    clock = ShiftedClock()
    one, other = "https://one.example", "https://other.example"
    with closing(opened(tmp_path)) as outbox:
        announcements = Announcements(
            home=tmp_path, outbox=outbox, clock=clock, prove=lambda *_, **__: receipt(outbox, 0)
        )
        used = Identity(url=one, device_id="mine", token="psd_x")
        identities.save(tmp_path, used)
        for announced in (other, one, other, one):
            used = announcements.follow(used, announced, by=used.url)
            assert used.url == other
        clock.passed = AGAIN_S
        assert announcements.follow(used, one, by=used.url).url == one


def test_only_a_configured_receiver_announces(new: Live) -> None:
    body = {"device_id": DEVICE, "stream": "s", "events": []}

    assert RECEIVER_HEADER not in new.client("device").post("/api/events", json=body).headers
    with old_receiver(new, "https://new.example") as old:
        answer = new.client("device").post(f"{old}/api/events", json=body)
        assert answer.headers[RECEIVER_HEADER] == "https://new.example"
    assert AppSettings().announce_url is None


# Several addresses


def test_a_run_goes_on_to_the_next_address(new: Live, dead_url: str, tmp_path: Path) -> None:
    with device(tmp_path, new, dead_url, "http://127.0.0.1:9", new.url) as made:
        assert made.record_and_sync().delivered == 1
        assert made.urls == (dead_url, "http://127.0.0.1:9", new.url)


def test_the_address_that_works_is_kept_for_a_while(
    new: Live, dead_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with device(tmp_path, new, dead_url, new.url) as made:
        for _ in range(3):
            assert made.record_and_sync().delivered == 1
        assert caplog.text.count("trying") == 1
        made.clock.passed += PREFERRED_S + 1
        assert made.record_and_sync().delivered == 1
        assert caplog.text.count("trying") == 2
        assert made.outbox.state().sync_events_waiting == 0


def test_a_run_ends_when_no_address_answers(new: Live, dead_url: str, tmp_path: Path) -> None:
    with device(tmp_path, new, dead_url, f"{dead_url}/other") as made:
        result = made.record_and_sync()

        assert (result.delivered, result.waiting) == (0, 1)
        assert result.failure is not None
        assert result.failure.kind == "connect"
        assert made.outbox.state().sync_events_waiting == 1, "it is one failure, and three make a failing device"


# set-url


def set_url(home: Path, *arguments: str) -> int:
    return main(["set-url", *arguments, "--home", str(home)])


@pytest.fixture
def enrolled(new: Live, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    identities.save(home, Identity(url="https://old.example", device_id=DEVICE, token=new.secrets["device"]))
    return home


def test_set_url_changes_the_address_and_nothing_else(new: Live, enrolled: Path) -> None:
    before = identities.load(enrolled)
    assert before is not None

    assert set_url(enrolled, new.url, "--also", "https://backup.example") == 0
    assert identities.load(enrolled) == before.at(new.url, "https://backup.example")


def test_set_url_needs_a_receiver_that_knows_the_device(
    enrolled: Path, dead_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = identities.load(enrolled)

    assert set_url(enrolled, dead_url) == 3
    said = capsys.readouterr().err
    assert "https://old.example stays" in said
    assert "repeat this command" in said
    with live_receiver(tmp_path) as other:
        assert set_url(enrolled, other.url) == 4
    assert "--again" in capsys.readouterr().err
    assert set_url(enrolled, "http://192.0.2.1") == 2
    assert set_url(enrolled, "nonsense") == 2
    assert identities.load(enrolled) == before
    assert set_url(tmp_path / "none", "https://new.example") == 4
