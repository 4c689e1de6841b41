"""A school day of two PiBooks and a PiBox: offline in the morning, a bad link on Thursday, proof at the end.

    scripts/demo            the whole day, under a minute
    scripts/demo --keep     leaves the receiver running, with 60 more schools, and says how to open its pages

Every part is the real program in a process of its own, in a new temporary folder; the link of each device is a
small proxy whose faults change as the day goes on. The exit code is 1 unless every recorded event is stored once.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.lessons import Lesson, lessons
from pisync_agent import Recorder
from pisync_common.times import now_ms
from pisync_receiver.store.opening import open_store
from tests.support.fault_proxy import FaultProxy
from tests.support.fleet_of_schools import fill
from tests.support.processes import AgentProcess, ReceiverProcess, wait_until

SITE = "Hillside School"
DONE_OR_PENDING = (0, 1, 3)


@dataclass
class Device:
    """A device with its link, and what its recorder promised: seq -> what was recorded."""

    name: str
    agent: AgentProcess
    link: FaultProxy
    promised: dict[int, tuple[str, str, str, str]] = field(default_factory=dict)

    def promise(self, seq: int, lesson: Lesson) -> None:
        self.promised[seq] = contents(lesson.type, lesson.learner_id, lesson.object_id, lesson.data)


def contents(type: str, learner: str, object_id: str, data: object) -> tuple[str, str, str, str]:
    """Return what must come out of the receiver as it went into the recorder."""
    return type, learner, object_id, json.dumps(data, sort_keys=True)


class Day:
    """The receiver, the devices and the story."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.receiver = opened.enter_context(ReceiverProcess(folder / "receiver"))
        self.token = self.receiver.admin_token()
        code = self.receiver.enrollment_code("--uses", "3", "--site", SITE)
        self.devices = [self._unpacked(name, folder, opened) for name in ("pibook-01", "pibook-02", "pibox-01")]
        chapter(f"At the depot: a receiver at {self.receiver.url}, and three devices")
        *books, box = self.devices
        for device in books:
            device.agent.enroll(device.link.url, code, device_id=device.name)
            say(f"{device.name}$ pisync enroll {device.link.url} --code {code} --device-id {device.name}")
        self._enroll_by_file(box, folder / "pisync-enroll.toml", code)

    def _unpacked(self, name: str, folder: Path, opened: ExitStack) -> Device:
        link = opened.enter_context(FaultProxy("127.0.0.1", self.receiver.port))
        agent = opened.enter_context(AgentProcess(folder / name, environ={"PISYNC_AGENT_RETRY_BASE": "10m"}))
        return Device(name, agent, link)

    def _enroll_by_file(self, device: Device, file: Path, code: str) -> None:
        """What happens at boot where this file is on the boot partition, without a person and a keyboard."""
        file.write_text(f'receiver = "{device.link.url}"\ncode = "{code}"\ndevice_id = "{device.name}"\n')
        say(f"{device.name}: {file.name} is on its card's boot partition", file.read_text())
        device.agent.command("enroll-file", str(file))
        device.agent.start()
        wait_until(lambda: bool(device.agent.status()["enrolled"]), f"{device.name} enrolls")
        say(f"{device.name}: switched on; enrolled as {device.agent.status()['device_id']}, and the file is gone")
        device.agent.stop()

    # Morning

    def morning(self) -> None:
        chapter("Morning, no internet: the services start, three classes learn")
        for device in self.devices:
            device.link.refuse = True
            device.agent.start()
        first, second, box = self.devices
        self._lesson_by_commands(first)
        self._lesson_by_api(first, 300, seed=1)
        self._lesson_with_a_kill(second, 300, seed=2)
        self._lesson_by_api(box, 600, seed=3, threads=8)
        for device in self.devices:
            status = device.agent.status()
            say(f"{device.name}: {len(device.promised):,} events recorded, {status['waiting']:,} pending")

    def _lesson_by_commands(self, device: Device) -> None:
        for lesson in lessons(3, seed=9):
            arguments = (lesson.type, "--learner", lesson.learner_id, "--object", lesson.object_id)
            seq = device.agent.command("record", *arguments, "--data", json.dumps(lesson.data))
            device.promise(int(seq), lesson)
            say(f"{device.name}$ pisync record {' '.join(arguments)} --data …  ->  {seq.strip()}")

    def _lesson_by_api(self, device: Device, count: int, *, seed: int, threads: int = 1) -> None:
        with Recorder(device.agent.home) as recorder:

            def learn(part: list[Lesson]) -> None:
                for lesson in part:
                    device.promise(record(recorder, lesson), lesson)

            made = list(lessons(count, seed=seed))
            classes = [threading.Thread(target=learn, args=(made[n::threads],)) for n in range(threads)]
            for thread in classes:
                thread.start()
            for thread in classes:
                thread.join()

    def _lesson_with_a_kill(self, device: Device, count: int, *, seed: int) -> None:
        with Recorder(device.agent.home) as recorder:
            for number, lesson in enumerate(lessons(count, seed=seed)):
                if number == count // 3:
                    say(f"{device.name}: SIGKILL for the service during a lesson; the app continues to record")
                    device.agent.kill()
                if number == 2 * count // 3:
                    device.agent.start()
                device.promise(record(recorder, lesson), lesson)

    # Thursday

    def thursday(self) -> None:
        chapter("Thursday: one hour of internet over bad links")
        first, second, box = self.devices
        say(f"{first.name}: 40 kB/s, and the line breaks in the middle of an upload")
        self._connect(first, cut_up_after=3_000)
        self._sync(first)
        first.link.cut_up_after = None
        say(f"{first.name}: the line is back, but the receiver's next answer is lost")
        first.link.drop_answers, first.link.drop_answers_to = 1, "/api/events"
        self._sync(first)
        self._connect(second, rate=8_000)
        say(f"{second.name}: the receiver is killed (SIGKILL) while it takes a batch, and starts again")
        self._sync_while_the_receiver_dies(second)
        for device in (first, second):
            self._sync(device)
        say(f"{box.name}: a gateway answers 502 to its batches; its small sync events get through")
        self._connect(box, bad_gateway={"/api/events"})
        for _ in range(3):
            self._sync(box)
        say(f"{box.name}: what is wrong? A technician asks")
        say(f"{box.name}$ pisync doctor", box.agent.run("doctor").stdout)

    def _connect(self, device: Device, **faults: object) -> None:
        device.link.change(rate=40_000)
        device.link.change(**faults)
        device.link.refuse = False

    def _sync_while_the_receiver_dies(self, device: Device) -> None:
        before = device.link.bytes_up
        sync = threading.Thread(target=self._sync, args=(device,))
        sync.start()
        wait_until(lambda: device.link.bytes_up > before or not sync.is_alive(), "the batch is on its way")
        self.receiver.kill()
        sync.join()
        self.receiver.start()
        device.link.rate = 40_000

    def _sync(self, device: Device) -> None:
        done = device.agent.run("sync")
        if done.returncode not in DONE_OR_PENDING:
            raise RuntimeError(f"{device.name}: pisync sync ended with {done.returncode}:\n{done.stderr}")
        last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
        say(f"{device.name}$ pisync sync  ->  {done.returncode}: {last}")

    # What an admin sees

    def failures(self, when: str) -> list[str]:
        chapter(f"Admin: repeated failures, {when}")
        shown = self.receiver.run("failures")
        say("$ pisync-receiver failures", shown.stdout + shown.stderr)
        return [row["device_id"] for row in self.receiver.json("failures")]

    def recovery(self) -> None:
        chapter("The gateway is repaired; a technician forces a sync run")
        for device in self.devices:
            device.link.heal()
            self._sync(device)

    def history(self) -> None:
        box = self.devices[-1]
        chapter(f"Admin: sync history of {box.name}, newest first")
        say(f"$ pisync-receiver history {box.name}", self.receiver.command("history", box.name))

    def proof(self) -> bool:
        """Check that each device's stream is complete and each recorded event is stored once, as it was recorded."""
        chapter("Proof")
        verdicts = [self._is_complete(device) for device in self.devices]
        stored: Counter[tuple[str, str, int]] = Counter()
        found: dict[tuple[str, int], tuple[str, str, str, str]] = {}
        for row in self._export():
            stored[row["device_id"], row["stream"], row["seq"]] += 1
            found[row["device_id"], row["seq"]] = contents(
                row["type"], row["learner_id"], row["object_id"], row["data"]
            )
        wanted = {(d.name, seq): lesson for d in self.devices for seq, lesson in d.promised.items()}
        missing = [key for key in wanted if key not in found]
        changed = [key for key in wanted if key in found and found[key] != wanted[key]]
        duplicates = stored.total() - len(wanted)
        say(
            f"recorded {len(wanted):,} = stored {stored.total():,}, missing {len(missing)}, "
            f"duplicates {duplicates}, changed {len(changed)}"
        )
        return all(verdicts) and not missing and not duplicates and not changed and len(wanted) > 1000

    def fill(self) -> None:
        """Add a made-up fleet of schools beside the real devices, straight to the stopped receiver's database."""
        chapter("60 more schools, made up, so that there is something to look at")
        self.receiver.stop()
        asyncio.run(self._filled())
        self.receiver.start()

    async def _filled(self) -> None:
        store = await open_store(self.receiver.database)
        try:
            await fill(store, now_ms=now_ms(), days=14)
        finally:
            await store.aclose()

    def _is_complete(self, device: Device) -> bool:
        streams = json.load(self._get(f"/api/devices/{device.name}/completeness"))["streams"]
        for stream in streams:
            gaps = stream["missing"] or "nothing"
            say(f"{device.name} stream {stream['stream']}: 1 to {stream['watermark']:,}, missing {gaps}")
        return [stream["watermark"] for stream in streams] == [max(device.promised)]

    def _export(self) -> Iterator[dict[str, Any]]:
        with self._get("/api/events", accept="application/x-ndjson") as lines:
            for line in lines:
                yield json.loads(line)

    def _get(self, path: str, accept: str = "application/json") -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": accept}
        return urllib.request.urlopen(urllib.request.Request(self.receiver.url + path, headers=headers), timeout=30)


def record(recorder: Recorder, lesson: Lesson) -> int:
    return recorder.record(lesson.type, learner_id=lesson.learner_id, object_id=lesson.object_id, data=lesson.data)


_STARTED = time.monotonic()


def say(line: str, block: str = "") -> None:
    print(f"{time.monotonic() - _STARTED:5.1f} s  {line}", flush=True)
    for row in block.splitlines():
        print(f"           {row}", flush=True)


def chapter(title: str) -> None:
    print(f"\n== {title}", flush=True)


@contextmanager
def folder_for_the_day(keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pisync-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="leave the receiver running until Ctrl-C")
    keep: bool = parser.parse_args().keep
    with folder_for_the_day(keep) as folder, ExitStack() as opened:
        day = Day(folder, opened)
        day.morning()
        day.thursday()
        before = day.failures("before the gateway is repaired")
        day.recovery()
        after = day.failures("after")
        day.history()
        good = day.proof() and before == ["pibox-01"] and after == []
        print("\nEvery recorded event is stored once." if good else "\nTHE PROOF FAILED: see above.", flush=True)
        if keep:
            day.fill()
            print(
                f"\nOpen {day.receiver.url} in a browser on this machine, and sign in with this token:\n  {day.token}"
            )
            print(f"Files are in {folder}. Ctrl-C ends it. The same answers for programs:")
            print(f"  curl -H 'Authorization: Bearer {day.token}' {day.receiver.url}/api/overview", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
