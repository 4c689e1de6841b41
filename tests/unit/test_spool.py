"""The watched folder: every line once and in order, whatever is put there and whenever it is interrupted."""

import asyncio
import fcntl
import json
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.errors import AgentError, OutboxFull
from pisync_agent.outbox import event_rows
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.service import spool as spool_module
from pisync_agent.service import spool_file
from pisync_agent.service.decoding import Events
from pisync_agent.service.inotify import FolderWatch
from pisync_agent.service.server import LocalServer, record
from pisync_agent.service.spool import Spool, make_folder
from pisync_agent.service.spool_file import SpoolFile


class Crash(BaseException):
    """The process ends here."""


class Device:
    """An outbox and its spool folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.outbox: Outbox = open_outbox(home)
        self.folder = home / "spool"
        make_folder(self.folder)
        self.spool = self.new_spool()

    def new_spool(self) -> Spool:
        """Return a spool as the service makes it at its start."""
        outbox = self.outbox
        server = LocalServer(path=self.home / "agent.sock", serve=partial(record, outbox))
        return Spool(
            home=self.home, record=server.record, stamp=server.stamp, note=outbox.note, set_note=outbox.set_note
        )

    def put(self, name: str, *events: object, end: str = "\n") -> Path:
        """Write a file as apps are asked to: elsewhere, then renamed."""
        made = self.home / "made"
        made.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in events)[:-1])
        with made.open("a") as file:
            file.write(end)
        return made.rename(self.folder / name)

    def take(self) -> bool:
        return asyncio.run(self.spool.take_all())

    def restart(self) -> None:
        self.spool = self.new_spool()

    def recorded(self) -> list[Any]:
        """Return `data.n` of every event, in the order of seq."""
        rows = self.outbox.read(0, max_events=10**6, max_bytes=10**9)
        return [json.loads(body).get("data", {}).get("n") for _, body in rows]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "home")
    yield made
    made.outbox.close()


def event(n: int, **fields: object) -> dict[str, object]:
    return {"type": "note.taken", "data": {"n": n}, **fields}


def crash_at(device: Device, monkeypatch: pytest.MonkeyPatch, *, commit: int) -> None:
    """Take files until the process ends right after this commit."""
    real, commits = device.spool.record, 0

    async def counted(events: Events) -> list[int | AgentError]:
        nonlocal commits
        results = await real(events)
        commits += 1
        if commits == commit:
            raise Crash
        return results

    device.spool.record = counted
    with pytest.raises(Crash):
        device.take()
    device.restart()


def test_files_are_recorded_in_order_and_deleted(device: Device) -> None:
    device.put("2.ndjson", event(3))
    device.put("1.ndjson", event(1), "", event(2), end="")

    assert device.take()
    assert device.recorded() == [1, 2, 3]
    assert device.names() == []


def test_an_event_keeps_its_time_its_id_and_its_text(device: Device) -> None:
    device.put("a.ndjson", event(1, id="app-1", learner_id="عائشة", occurred_at="2026-11-20T09:30:00.5+03:00"))
    device.take()
    ((_, body),) = device.outbox.read(0, max_events=9, max_bytes=10**6)
    found = json.loads(body)

    assert (found["id"], found["learner_id"], found["occurred_at"]) == ("app-1", "عائشة", "2026-11-20T06:30:00.500Z")
    assert "recorded_at" in found


def test_a_refused_line_goes_beside_the_file_with_its_reason(device: Device) -> None:
    device.put("a.ndjson", event(1), '{"type": "A"}', "not JSON", "x" * (1 << 20) + "y", event(2))
    assert device.take()
    rows = [json.loads(line) for line in (device.folder / "a.ndjson.refused").read_text().splitlines()]

    assert device.recorded() == [1, 2]
    assert [row["line"] for row in rows] == [2, 3, 4]
    assert [row["text"][:5] for row in rows] == ['{"typ', "not J", "xxxxx"]
    for row, reason in zip(rows, ("noun.verb", "not JSON", "longer than"), strict=True):
        assert reason in row["reason"]
    assert device.names() == ["a.ndjson.refused"]
    assert stat.S_IMODE((device.folder / "a.ndjson.refused").stat().st_mode) == 0o640

    device.put("a.ndjson", "later")
    device.take()
    assert len((device.folder / "a.ndjson.refused").read_text().splitlines()) == 4, "nothing refused is overwritten"


@pytest.mark.parametrize("commit", [1, 2, 3, 4])
def test_a_crash_between_commits_and_deletion_doubles_nothing(
    device: Device, monkeypatch: pytest.MonkeyPatch, commit: int
) -> None:
    monkeypatch.setattr(spool_file, "GROUP_LINES", 3)
    device.put("a.ndjson", *(event(n, **({"id": f"app-{n}"} if n % 4 == 0 else {})) for n in range(10)))
    crash_at(device, monkeypatch, commit=commit)
    assert len(device.recorded()) == min(10, 3 * commit)

    assert device.take()
    assert device.recorded() == list(range(10))
    assert device.names() == []


def test_a_file_longer_than_what_is_searched_is_recorded_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_file, "GROUP_LINES", 3)
    monkeypatch.setattr(spool_module, "NOTED_LINES", 6)
    monkeypatch.setattr(event_rows, "ATTEMPTS_SEARCHED", 10)
    device.put("a.ndjson", *map(event, range(40)))
    crash_at(device, monkeypatch, commit=12)

    assert device.take()
    assert device.recorded() == list(range(40))


def test_the_same_lines_in_another_file_are_other_events(device: Device) -> None:
    for name in ("a.ndjson", "b.ndjson", "a.ndjson"):
        device.put(name, event(1), event(1, id="app-1"))
        device.take()

    assert len(device.recorded()) == 4, "and an id is recorded once"


def test_a_full_outbox_keeps_the_file_and_it_is_recorded_once_there_is_room(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "GROUP_LINES", 4)
    append, full = device.outbox.append, True

    def almost_full(events: Sequence[Any]) -> list[int | AgentError]:
        room = 2 if full and device.recorded() else len(events)
        return append(events[:room]) + [OutboxFull("no room")] * (len(events) - room)

    monkeypatch.setattr(device.outbox, "append", almost_full)
    device.put("a.ndjson", *map(event, range(10)))
    assert not device.take()
    assert device.names() == ["a.ndjson"]
    full = False

    assert device.take()
    assert device.recorded() == list(range(10))
    assert device.names() == []


def test_what_cannot_be_taken_is_left_and_stops_nothing_else(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret, linked = tmp_path / "secret", tmp_path / "linked"
    for target in (secret, linked):
        target.write_text(json.dumps(event(66)) + "\n")
    (device.folder / "a-link.ndjson").symlink_to(linked)
    (device.folder / "b-nowhere.ndjson").symlink_to("/nowhere")
    os.link(secret, device.folder / "c-hard.ndjson")
    os.mkfifo(device.folder / "d-pipe.ndjson")
    (device.folder / "e-folder.ndjson").mkdir()
    with (device.folder / "f-huge.ndjson").open("wb") as huge:
        huge.seek(spool_file.FILE_BYTES)
        huge.write(b"\n")
    (device.folder / "g-writing.ndjson").write_text(json.dumps(event(1)) + '\n{"type": "not')
    (device.folder / ("h" * 230 + ".ndjson")).write_text(json.dumps(event(2)) + "\n")
    (device.folder / ".hidden.ndjson").write_text(json.dumps(event(3)) + "\n")
    (device.folder / "i.ndjson.tmp").write_text(json.dumps(event(4)) + "\n")
    device.put("z.ndjson", event(5))
    before = device.names()

    assert device.take()
    assert device.recorded() == [5]
    assert device.names() == [name for name in before if name != "z.ndjson"]
    assert "not a regular file" in caplog.text
    assert "secret" not in caplog.text
    assert "g-writing" not in caplog.text, "a name may say who learns"
    logged = len(caplog.records)
    device.take()
    assert len(caplog.records) == logged, "a state is logged once"

    with (device.folder / "g-writing.ndjson").open("a") as file:
        file.write('e.taken", "data": {"n": 6}}\n')
    device.take()
    assert device.recorded() == [5, 1, 6]


def test_the_file_of_refused_lines_leads_nowhere_else(device: Device, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (device.folder / "a.ndjson.refused").symlink_to(victim)
    device.put("a.ndjson", event(1), "bad", event(2))
    for _ in range(3):
        assert device.take()

    assert victim.read_text() == "kept"
    assert device.recorded() == [1, 2], "not again with each try"
    assert device.names() == ["a.ndjson", "a.ndjson.refused"]
    (device.folder / "a.ndjson.refused").unlink()
    assert device.take()
    assert device.recorded() == [1, 2]
    assert json.loads((device.folder / "a.ndjson.refused").read_text())["line"] == 2
    assert device.names() == ["a.ndjson.refused"]


def test_a_file_that_takes_the_name_meanwhile_is_not_deleted(device: Device) -> None:
    device.put("a.ndjson", event(1))
    folder = os.open(device.folder, os.O_RDONLY)
    with SpoolFile(folder, "a.ndjson") as file:
        device.put("a.ndjson", event(2))
        file.delete()
    os.close(folder)

    device.take()
    assert device.recorded() == [2]


def test_a_third_file_under_the_name_is_not_replaced(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app writes the next file as soon as the name is free."""
    rename = os.rename

    def rename_and_write(source: str, *arguments: Any, **folders: Any) -> None:
        rename(source, *arguments, **folders)
        if source == "a.ndjson":
            (device.folder / "a.ndjson").write_text(json.dumps(event(3)) + "\n")

    device.put("a.ndjson", event(1))
    folder = os.open(device.folder, os.O_RDONLY)
    with SpoolFile(folder, "a.ndjson") as file:
        device.put("a.ndjson", event(2))
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", rename_and_write)
            file.delete()
    os.close(folder)

    device.take()
    assert sorted(device.recorded()) == [2, 3]


def test_no_app_keeps_another_apps_file_from_being_deleted(device: Device) -> None:
    device.put("a.ndjson", event(1))
    device.put("b.ndjson", event(2))
    for number in ((device.folder / "a.ndjson").stat().st_ino, "1"):
        (device.folder / f".{number}.done").mkdir()

    assert device.take()
    assert device.recorded() == [1, 2]
    assert not [name for name in device.names() if name.endswith(".ndjson")]


def test_a_file_that_an_app_keeps_shut_stops_no_other(device: Device) -> None:
    """With a lease, the kernel keeps others from opening a file for 45 seconds, and again."""
    device.put("a.ndjson", event(1))
    device.put("b.ndjson", event(2))
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with (device.folder / "a.ndjson").open("r+") as held:
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)

            assert not device.take(), "it is tried again"
            assert device.recorded() == [2]
    finally:
        signal.signal(signal.SIGIO, before)

    assert device.take()
    assert device.recorded() == [2, 1]


def test_the_folder_is_the_groups_to_write(device: Device) -> None:
    assert stat.S_IMODE(device.folder.stat().st_mode) == 0o3770
    device.folder.chmod(0o700)
    make_folder(device.folder)
    assert stat.S_IMODE(device.folder.stat().st_mode) == 0o700, "an administrator's choice stays"


def test_many_files_are_taken_page_by_page(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "PAGE_FILES", 3)
    for n in range(10):
        device.put(f"{n}.ndjson", event(n))

    assert device.take()
    assert device.recorded() == list(range(10))


def run_until_taken(device: Device, names: Sequence[str], *, poll_s: float) -> None:
    """Run the spool, and rename files into the folder one after the other, each once the file before is taken."""

    async def main() -> None:
        device.spool.poll_s = poll_s
        running = asyncio.ensure_future(device.spool.run_forever())
        async with asyncio.timeout(60):
            for n, name in enumerate(names):
                while not device.folder.is_dir():  # noqa: ASYNC110 - the folder is made again after a poll
                    await asyncio.sleep(0.001)
                device.put(name, event(n))
                while (device.folder / name).exists():  # noqa: ASYNC110 - so is a file taken
                    await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_a_file_is_taken_as_it_comes_without_polling(device: Device) -> None:
    run_until_taken(device, ["a.ndjson", "b.ndjson", "c.ndjson"], poll_s=3600)

    assert device.recorded() == [0, 1, 2]


def test_a_folder_that_the_kernel_does_not_watch_is_polled(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> FolderWatch:
        raise OSError("no watches left")

    monkeypatch.setattr(spool_module, "FolderWatch", refuse)
    run_until_taken(device, ["a.ndjson", "b.ndjson"], poll_s=0.01)

    assert device.recorded() == [0, 1]


def test_a_folder_that_was_removed_is_made_again(device: Device) -> None:
    async def main() -> None:
        device.spool.poll_s = 0.01
        running = asyncio.ensure_future(device.spool.run_forever())
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
            device.folder.rmdir()
            while not device.folder.is_dir():  # noqa: ASYNC110 - made again after a poll
                await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
    assert stat.S_IMODE(device.folder.stat().st_mode) == 0o3770
