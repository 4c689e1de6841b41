"""The fault campaign: devices that record and deliver while links break, processes are killed and old copies are put
back. Afterwards every event that a device acknowledged is stored, once, and no device is stuck.

A round is a deck of faults, shuffled by its seed, each played after so much more was recorded. The same seed plays the
same faults in the same order; at which byte each of them hits differs from run to run.
"""

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, Final, Protocol, TypeVar

from tests.support.fault_proxy import FaultProxy
from tests.support.ledger import Ledger, RecordingApp
from tests.support.postgres import fresh_database, run
from tests.support.processes import DEADLINE_SECONDS, AgentProcess, ReceiverProcess
from tests.support.proof import Proof

DECK: Final = {
    "refuse connections": 6,
    "cut a request's head": 8,
    "cut a request's body": 8,
    "lose an answer": 8,
    "cut an answer's head": 6,
    "cut an answer's body": 6,
    "break every connection": 8,
    "stall": 4,
    "answer in the receiver's place": 4,
    "slow the link": 3,
    "kill the service": 9,
    "kill the receiver": 6,
    "kill both": 3,
    "kill both as they start": 2,
    "kill an app": 10,
    "copy the outbox": 3,
    "put an old outbox back": 2,
    "back the receiver up": 3,
    "put a backup back": 3,
}
"""Every kind of fault, and how many times a round has it."""
SETTINGS: Final = ("--sync-delay", "0s", "--retry-base", "0.02s", "--retry-cap", "0.2s")
STOPS: Final = (signal.SIGTERM, signal.SIGKILL)


class Backups(Protocol):
    """How an administrator keeps a receiver's database, and puts it back while the receiver is stopped."""

    def keep(self, copy: Path) -> None: ...
    def put_back(self, copy: Path) -> None: ...


class SqliteBackups:
    def __init__(self, receiver: ReceiverProcess) -> None:
        self._receiver = receiver

    def keep(self, copy: Path) -> None:
        self._receiver.command("backup", str(copy))

    def put_back(self, copy: Path) -> None:
        for file in self._receiver.home.glob("receiver.db*"):
            file.unlink()
        shutil.copy(copy, self._receiver.database)


class PostgresBackups:
    def __init__(self, url: str) -> None:
        self._url = url

    def keep(self, copy: Path) -> None:
        subprocess.run(["pg_dump", "--format=custom", f"--file={copy}", self._url], check=True)

    def put_back(self, copy: Path) -> None:
        server, _, name = self._url.rpartition("/")
        run(f"{server}/postgres", f"DROP DATABASE {name} WITH (FORCE)")
        run(f"{server}/postgres", f"CREATE DATABASE {name}")
        subprocess.run(["pg_restore", "--no-owner", f"--dbname={self._url}", str(copy)], check=True)


@dataclass(kw_only=True)
class Device:
    """A device, its link and its apps. `copies` are older states of its outbox."""

    name: str
    agent: AgentProcess
    link: FaultProxy
    apps: list[RecordingApp] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)


@dataclass(kw_only=True)
class Verdict:
    """What a round ended with."""

    seed: int
    seconds: float
    acknowledged: int
    stored: int
    missing: list[Any]
    doubled: list[Any]
    unknown: list[Any]
    """Stored, and never handed to a device."""
    stuck: list[str]
    """Devices that have not delivered everything within a minute of the last fault, and how they stand."""
    traces: list[str]
    refusals: int
    faults: dict[str, int]

    @property
    def good(self) -> bool:
        return not (self.missing or self.doubled or self.unknown or self.stuck or self.traces)

    def table(self) -> str:
        rows: dict[str, object] = {
            "seed": self.seed,
            "seconds": f"{self.seconds:.0f}",
            "acknowledged": self.acknowledged,
            "stored (with those whose answer was lost)": self.stored,
            "refused aloud": self.refusals,
            "missing": f"{len(self.missing)} {self.missing[:5] or ''}",
            "doubled": f"{len(self.doubled)} {self.doubled[:5] or ''}",
            "never recorded": f"{len(self.unknown)} {self.unknown[:5] or ''}",
            "devices stuck": f"{len(self.stuck)} {self.stuck or ''}",
            "tracebacks": f"{len(self.traces)} {self.traces or ''}",
            **{f"  {name}": number for name, number in self.faults.items()},
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def campaign(folder: Path, *, seed: int, events: int, devices: int = 3, postgres: bool = False) -> Verdict:
    """Play one round of at least `events` acknowledged events, in an empty folder."""
    began = time.monotonic()
    with school(folder, seed=seed, devices=devices, postgres=postgres, kind=Round) as round_:
        round_.play(events)
        return round_.verdict(seed, began)


R = TypeVar("R", bound="Round")


@contextmanager
def school(
    folder: Path,
    *,
    seed: int,
    devices: int,
    postgres: bool = False,
    kind: "type[R]",
    agent_kind: type[AgentProcess] = AgentProcess,
) -> Iterator[R]:
    with ExitStack() as opened:
        url = opened.enter_context(fresh_database()) if postgres else None
        receiver = opened.enter_context(
            ReceiverProcess(folder / "receiver", "--log-level", "warning", database_url=url)
        )
        backups: Backups = SqliteBackups(receiver) if url is None else PostgresBackups(url)
        ledger = Ledger(folder / "ledger.ndjson")
        opened.callback(ledger.close)
        round_ = kind(folder, receiver, backups, ledger, random.Random(seed))
        for number in range(1, devices + 1):
            link = opened.enter_context(FaultProxy("127.0.0.1", receiver.port))
            agent = opened.enter_context(agent_kind(folder / f"device-{number}", *SETTINGS))
            device = Device(name=f"pibook-{number}", agent=agent, link=link)
            agent.enroll(link.url, receiver.enrollment_code(), device_id=device.name)
            agent.start()
            for app in range(1, 3):
                name = f"app-{number}-{app}"
                made = RecordingApp(
                    agent, device.name, name, ledger, seed=f"{seed} {name}", may_record=round_.may_record
                )
                opened.callback(made.discard)
                device.apps.append(made)
            round_.devices.append(device)
        yield round_


class Round:
    """One deck of faults. Each `_…` method that DECK names, with `_` for other characters, is a fault."""

    def __init__(
        self, folder: Path, receiver: ReceiverProcess, backups: Backups, ledger: Ledger, rng: random.Random
    ) -> None:
        self.devices: list[Device] = []
        self.played = Counter[str]()
        self._folder = folder
        self._receiver = receiver
        self._backups = backups
        self._ledger = ledger
        self._rng = rng
        self._kept: list[Path] = []
        """Backups that a restore may use: no device's outbox was put back since."""
        self._allowed = 0
        self._names = 0

    def may_record(self) -> bool:
        """Whether apps may record more now: they wait for the faults, so that faults meet work."""
        return len(self._ledger) < self._allowed

    def play(self, events: int) -> None:
        deck = [name for name, times in DECK.items() for _ in range(times)]
        self._rng.shuffle(deck)
        self._back_the_receiver_up()
        for device in self.devices:
            self._copy_outbox_of(device)
        for device in self.devices:
            self._resume(device)
        step = events // len(deck)
        for name in deck:
            # The fault meets apps at work: some of what they may record now comes before it, the rest during it.
            begun = len(self._ledger)
            self._record(begun + self._rng.randrange(1, step // 2), allowed=begun + step)
            self._fault(name)(self._rng.choice(self.devices))
            self.played[name] += 1
        self._record(events, allowed=events)

    def _record(self, least: int, *, allowed: int) -> None:
        """Let apps record, until the ledger has this number."""
        self._allowed = allowed
        deadline = time.monotonic() + DEADLINE_SECONDS * 2
        while len(self._ledger) < least:
            assert time.monotonic() < deadline, f"nothing is recorded: {self._ledger.refusals[-3:]}"
            time.sleep(0.001)

    def _fault(self, name: str) -> Callable[[Device], None]:
        found: Callable[[Device], None] = getattr(self, "_" + name.replace(" ", "_").replace("'", ""))
        return found

    # The link. Each fault lasts until the next fault of this link, or the next proof that all is delivered.

    def _refuse_connections(self, device: Device) -> None:
        device.link.heal()
        device.link.refuse = True
        self._pass(0.3)
        device.link.refuse = False

    def _cut_a_requests_head(self, device: Device) -> None:
        self._change(device, cut_up_after=self._rng.randrange(1, 300))

    def _cut_a_requests_body(self, device: Device) -> None:
        self._change(device, cut_up_after=self._rng.randrange(300, 8_000))

    def _lose_an_answer(self, device: Device) -> None:
        self._change(device, drop_answers=self._rng.randrange(1, 4))

    def _cut_an_answers_head(self, device: Device) -> None:
        self._change(device, cut_down_after=self._rng.randrange(1, 150))

    def _cut_an_answers_body(self, device: Device) -> None:
        self._change(device, cut_down_after=self._rng.randrange(150, 900))

    def _break_every_connection(self, device: Device) -> None:
        device.link.heal()
        for _ in range(5):
            self._pass(0.05)
            device.link.cut()

    def _stall(self, device: Device) -> None:
        self._change(device, blackhole=True)
        self._pass(0.5)
        device.link.blackhole = False

    def _answer_in_the_receivers_place(self, device: Device) -> None:
        self._change(device, bad_gateway={"/api/events"})

    def _slow_the_link(self, device: Device) -> None:
        self._change(device, rate=20_000, latency=0.05)

    def _change(self, device: Device, **faults: object) -> None:
        device.link.heal()
        device.link.change(**faults)

    def _pass(self, most: float) -> None:
        """Let the programs work for a random moment."""
        time.sleep(self._rng.uniform(0, most))

    # Kills

    def _kill_the_service(self, device: Device) -> None:
        self._allowed = len(self._ledger) + 1
        self._rng.choice(device.apps).wait_for_order()
        self._pass(0.03)  # perhaps between a commit and its answer
        device.agent.kill()
        self._pass(0.1)  # apps write to the outbox themselves meanwhile
        device.agent.start()

    def _kill_the_receiver(self, device: Device) -> None:
        sent, until = device.link.bytes_up, time.monotonic() + 1
        while device.link.bytes_up == sent and time.monotonic() < until:
            time.sleep(0.001)
        self._pass(0.01)
        self._receiver.kill()
        self._receiver.start()

    def _kill_both(self, device: Device) -> None:
        device.agent.kill()
        self._receiver.kill()
        self._receiver.start()
        device.agent.start()

    def _kill_both_as_they_start(self, device: Device) -> None:
        device.agent.kill()
        self._receiver.kill()
        serve = [*self._receiver.program, "serve", "--port", str(self._receiver.port)]
        with (
            device.agent.popen("run", stdout=DEVNULL, stderr=DEVNULL) as service,
            subprocess.Popen(serve, env=self._receiver.environ(), stdout=DEVNULL, stderr=DEVNULL) as receiver,
        ):
            self._pass(0.8)
            service.kill()
            self._pass(0.2)
            receiver.kill()
        self._receiver.start()
        device.agent.start()

    def _kill_an_app(self, device: Device) -> None:
        self._allowed = len(self._ledger) + 1
        self._rng.choice(device.apps).kill(after=self._rng.uniform(0, 0.05))

    # Old copies

    def _copy_the_outbox(self, device: Device) -> None:
        self._pause(device)
        self._copy_outbox_of(device)
        self._resume(device)

    def _copy_outbox_of(self, device: Device) -> None:
        device.agent.stop()
        copy = self._new_path("outbox")
        copy.mkdir()
        for file in device.agent.home.glob("outbox.db*"):
            shutil.copy(file, copy)
        device.copies.append(copy)
        device.agent.start()

    def _put_an_old_outbox_back(self, device: Device) -> None:
        """The card's image of some time ago. Only after all is delivered: what is pending is on this card alone."""
        self._pause(device)
        device.link.heal()
        stuck = self._delivered(device)
        assert stuck is None, stuck
        device.agent.stop()
        for file in device.agent.home.glob("outbox.db*"):
            file.unlink()
        for file in self._rng.choice(device.copies).iterdir():
            shutil.copy(file, device.agent.home)
        device.agent.start()
        # What the device no longer has, no older backup of the receiver has either.
        self._kept.clear()
        self._back_the_receiver_up()
        self._resume(device)

    def _back_the_receiver_up(self, device: Device | None = None) -> None:
        copy = self._new_path("backup")
        self._backups.keep(copy)
        self._kept.append(copy)

    def _put_a_backup_back(self, device: Device) -> None:
        """Devices have delivered more since, and find out."""
        self._receiver.end(self._rng.choice(STOPS))
        self._backups.put_back(self._rng.choice(self._kept))
        self._receiver.start()

    def _new_path(self, what: str) -> Path:
        self._names += 1
        return self._folder / f"{what}-{self._names}"

    # The end

    def _pause(self, device: Device) -> None:
        for app in device.apps:
            app.pause()

    def _resume(self, device: Device) -> None:
        for app in device.apps:
            app.resume()

    def verdict(self, seed: int, began: float) -> Verdict:
        """End all faults, let the devices deliver, and count."""
        for device in self.devices:
            self._pause(device)
            device.link.heal()
        stuck = [found for device in self.devices if (found := self._delivered(device)) is not None]
        stored, acknowledged = Counter[Any](), set[Any]()
        with Proof(self._receiver) as proof:
            for device in self.devices:
                stored.update((device.name, *note) for note in notes(proof, device.name))
                acknowledged |= {(device.name, *note) for note in self._ledger.of(device.name)}
        tried = {(device, *note) for device, tried in self._ledger.tried.items() for note in tried}
        programs = [self._receiver, *(device.agent for device in self.devices)]
        return Verdict(
            seed=seed,
            seconds=time.monotonic() - began,
            acknowledged=len(acknowledged),
            stored=stored.total(),
            missing=sorted(acknowledged - stored.keys()),
            doubled=sorted(note for note, times in stored.items() if times > 1),
            unknown=sorted(stored.keys() - tried),
            stuck=stuck,
            traces=[program.log_file.name for program in programs if "Traceback" in program.log()],
            refusals=len(self._ledger.refusals),
            faults={name: self.played[name] for name in DECK},
        )

    def _delivered(self, device: Device) -> str | None:
        """Have a device deliver everything; how it stands if it has not within a minute."""
        told = self._ledger.of(device.name)
        deadline = time.monotonic() + DEADLINE_SECONDS
        with Proof(self._receiver) as proof:
            while True:
                synced = device.agent.run("sync")
                missing = told - notes(proof, device.name).keys()
                status = device.agent.status()
                complete = proof.completeness(device.name)["complete"]
                if synced.returncode == 0 and not missing and status["waiting"] == 0 and complete:
                    return None
                if time.monotonic() > deadline:
                    state = f"sync {synced.returncode}, {status['waiting']} waiting, {len(missing)} missing"
                    return f"{device.name}: {state}, complete: {complete}; {synced.stdout} {synced.stderr}"


def notes(proof: Proof, device: str) -> Counter[tuple[str, int]]:
    """Every stored event of a device, and how many times it is stored."""
    return Counter((row["learner_id"], row["data"]["n"]) for row in proof.events(device))
