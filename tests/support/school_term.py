"""A school term: weeks of school days on real programs, with the faults of the campaign and those of the calendar.

Devices are switched on in the morning, each with a boot of its own and a clock that is wrong in one of the usual ways;
classes record in bursts; there is internet on Thursdays; in the evening the power is cut more often than not. On
Thursdays everything has to arrive. A day takes a second or two, and the same seed draws the same days.
"""

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.campaign import Round, Verdict, school
from tests.support.clocked_agent import VARIABLE
from tests.support.processes import AgentProcess

DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
LESSONS: Final = 3
EVENTS: Final = 60
"""Events of a lesson, of all devices together."""
OFFLINE_FAULTS: Final = ("kill the service", "kill an app", "copy the outbox")
ONLINE_FAULTS: Final = (
    *OFFLINE_FAULTS,
    "refuse connections",
    "cut a request's head",
    "cut a request's body",
    "lose an answer",
    "cut an answer's body",
    "break every connection",
    "stall",
    "answer in the receiver's place",
    "slow the link",
    "kill the receiver",
    "kill both",
    "put an old outbox back",
    "back the receiver up",
    "put a backup back",
)
KEPT: Final = 3
"""Old copies and backups that are kept: a device can deliver again only what it still holds."""
DAY_MS: Final = 86_400_000


class SchoolAgent(AgentProcess):
    """An agent whose clock is set each morning."""

    program = (sys.executable, "-m", "tests.support.clocked_agent")

    def __init__(self, home: Path, *arguments: str) -> None:
        self._clock = home.with_name(home.name + ".clock")
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        super().__init__(home, *arguments, environ={VARIABLE: str(self._clock), "PYTHONPATH": path})
        self.boot(ahead_ms=0, synced=True)

    def boot(self, *, ahead_ms: int, synced: bool) -> None:
        """Set the clock of a new boot."""
        change = {"ahead_ms": ahead_ms, "boot_id": str(uuid.uuid4()), "clock_synced": synced}
        new = self._clock.with_suffix(".new")
        new.write_text(json.dumps(change))
        new.replace(self._clock)


@dataclass(kw_only=True)
class Resources:
    """What the programs take, at most, by week."""

    agent_mib: list[float] = field(default_factory=list)
    agent_files: list[int] = field(default_factory=list)
    receiver_mib: list[float] = field(default_factory=list)
    receiver_files: list[int] = field(default_factory=list)

    def line(self) -> str:
        """Return the last week's figures."""
        return (
            f"agents {self.agent_mib[-1]} MiB and {self.agent_files[-1]} open files at most, "
            f"receiver {self.receiver_mib[-1]} MiB and {self.receiver_files[-1]}"
        )

    @property
    def leaks(self) -> list[str]:
        """The resources that grow from week to week, beyond doubt."""
        limits = {"agent_mib": 16, "agent_files": 16, "receiver_mib": 64, "receiver_files": 64}
        return [
            f"{name}: {min(weeks)} to {max(weeks)}"
            for name, more in limits.items()
            if (weeks := getattr(self, name)) and max(weeks) > min(weeks[:2]) + more
        ]


class Term(Round):
    """See the module. `play_week` as often as wanted, then `verdict`."""

    def begin(self) -> None:
        """Keep a first copy of everything, and switch off."""
        self.resources = Resources()
        for device in self.devices:
            self._copy_outbox_of(device)
            device.agent.stop()
        self._back_the_receiver_up()

    @property
    def recorded(self) -> int:
        """Events acknowledged so far."""
        return len(self._ledger)

    def play_week(self, days: Sequence[str] = DAYS) -> None:
        for day in days:
            online = day == "Thursday"
            self._switch_on(online)
            self._school_day(online)
            if online:
                self._check_all_delivered()
                self._measure()
            self._switch_off()
        self._forget_old_copies()

    def _switch_on(self, online: bool) -> None:
        for device in self.devices:
            assert isinstance(device.agent, SchoolAgent)
            device.link.heal()
            device.link.refuse = not online
            device.agent.boot(ahead_ms=self._wrong_by(), synced=online and self._rng.random() < 0.5)
            device.agent.start()
            self._resume(device)

    def _wrong_by(self) -> int:
        """Draw how far a clock without a battery is off in the morning."""
        back_to_1970 = -int(time.time() * 1000)
        return self._rng.choice(
            (0, back_to_1970, -self._rng.randrange(30 * DAY_MS), -16 * 3_600_000, self._rng.randrange(400 * DAY_MS))
        )

    def _school_day(self, online: bool) -> None:
        for _ in range(LESSONS):
            begun = len(self._ledger)
            self._record(begun + self._rng.randrange(1, EVENTS // 2), allowed=begun + EVENTS)
            if self._rng.random() < 0.5:
                name = self._rng.choice(ONLINE_FAULTS if online else OFFLINE_FAULTS)
                self._fault(name)(self._rng.choice(self.devices))
                self.played[name] += 1
            self._record(begun + EVENTS // 2, allowed=begun + EVENTS)

    def _check_all_delivered(self) -> None:
        """Heal every link, and wait until all that was recorded has arrived."""
        for device in self.devices:
            self._pause(device)
            device.link.heal()
        for device in self.devices:
            stuck = self._delivered(device)
            assert stuck is None, stuck

    def _switch_off(self) -> None:
        """Cut the power of a device, in the middle of whatever it does; or shut it down."""
        self._allowed = 0
        for device in self.devices:
            cut = self._rng.random() < 0.6
            if cut:
                device.agent.kill()
                for app in device.apps:
                    app.cut()
            self._pause(device)
            if not cut:
                device.agent.stop()

    def _measure(self) -> None:
        agents = [device.agent for device in self.devices]
        seen = self.resources
        seen.agent_mib.append(round(max(agent.memory_mib("VmHWM") for agent in agents), 1))
        seen.agent_files.append(max(open_files(agent.pid) for agent in agents))
        seen.receiver_mib.append(round(self._receiver.memory_mib(), 1))
        seen.receiver_files.append(open_files(self._receiver.pid))

    def _forget_old_copies(self) -> None:
        for copies in (*(device.copies for device in self.devices), self._kept):
            for old in copies[:-KEPT]:
                if old.is_dir():
                    shutil.rmtree(old)
                else:
                    old.unlink()
            del copies[:-KEPT]

    def end(self, seed: int, began: float) -> Verdict:
        """Switch everything on with a good link, deliver, and count."""
        for device in self.devices:
            device.link.heal()
            device.agent.start()
        return self.verdict(seed, began)


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@contextmanager
def term(folder: Path, *, seed: int, devices: int) -> Iterator[Term]:
    """A school at the beginning of a term, in an empty folder."""
    with school(folder, seed=seed, devices=devices, kind=Term, agent_kind=SchoolAgent) as made:
        made.begin()
        yield made
