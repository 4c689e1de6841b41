"""The recorder where no service runs, and beside a service that answers strangely."""

import inspect
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pisync_agent import InvalidEvent, OutboxFull, Recorder, StoreUnusable, config
from pisync_agent.outbox import files
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.outbox.reader import OutboxReader
from pisync_common import unix_socket
from pisync_common.errors import SettingError
from pisync_common.single_writer import WriterLock
from tests.support.outboxes import Faults, StillClock, bodies, opened, seqs

DEADLINE_S = 20


def recorder(home: Path, **options: Any) -> Recorder:
    return Recorder(home, clock=StillClock(), **options)


def stored(home: Path) -> list[dict[str, Any]]:
    outbox = opened(home)
    found = [json.loads(body) for body in bodies(outbox)]
    outbox.close()
    return found


def test_record_returns_the_seq_of_what_is_stored(tmp_path: Path) -> None:
    with recorder(tmp_path / "made" / "on the way") as mine:
        first = mine.record("video.watched", learner_id="s-17", object_id="math/g5", data={"progress": 0.6})
        second = mine.record("note.taken")
    assert (first, second) == (1, 2)
    event, note = stored(tmp_path / "made" / "on the way")
    assert (event["type"], event["learner_id"], event["object_id"], event["data"]) == (
        "video.watched", "s-17", "math/g5", {"progress": 0.6},
    )  # fmt: skip
    assert event["occurred_at"] == "2026-11-23T09:00:00.000Z"
    assert set(note) == {"seq", "type", "occurred_at", "boot_id", "boottime_ms", "clock_synced"}


def test_the_apps_own_time_is_stored_beside_the_time_of_recording(tmp_path: Path) -> None:
    earlier = datetime(2020, 2, 29, 23, 30, tzinfo=timezone(timedelta(hours=3)))
    with recorder(tmp_path) as mine:
        assert mine.record("note.taken", occurred_at=earlier, id="n-1") == 1
        assert mine.record_many([{"type": "note.taken", "occurred_at": earlier}]) == [2]
    for event in stored(tmp_path):
        assert (event["occurred_at"], event["recorded_at"]) == ("2020-02-29T20:30:00.000Z", "2026-11-23T09:00:00.000Z")
    assert [event.get("id") for event in stored(tmp_path)] == ["n-1", None]


@pytest.mark.parametrize(
    "moment",
    [datetime(2026, 1, 1), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=3))), "2026-01-01T00:00:00Z"],  # noqa: DTZ001
)
def test_a_time_without_a_zone_or_outside_the_calendar_is_rejected(tmp_path: Path, moment: Any) -> None:
    with recorder(tmp_path) as mine, pytest.raises(InvalidEvent, match="occurred_at"):
        mine.record("note.taken", occurred_at=moment)


def test_a_repeat_with_the_same_id_is_harmless(tmp_path: Path) -> None:
    with recorder(tmp_path) as mine:
        assert [mine.record("note.taken", data={"n": 1}, id="k") for _ in range(3)] == [1, 1, 1]
        with pytest.raises(InvalidEvent, match="other content"):
            mine.record("note.taken", data={"n": 2}, id="k")
    assert len(stored(tmp_path)) == 1


def test_an_invalid_event_says_what_is_wrong_and_stores_nothing(tmp_path: Path) -> None:
    with recorder(tmp_path) as mine:
        with pytest.raises(InvalidEvent, match=r"noun\.verb"):
            mine.record("Video")
        with pytest.raises(ValueError, match="learner_id"):
            mine.record("video.watched", learner_id="a\nb")
        mine.record("video.watched")
    assert len(stored(tmp_path)) == 1


def test_record_many_returns_a_result_for_each(tmp_path: Path) -> None:
    with recorder(tmp_path) as mine:
        results = mine.record_many(
            [
                {"type": "video.watched", "learner_id": "s-1"},
                {"type": "bad"},
                {"type": "note.taken", "id": "k", "data": {"a": 1}},
                {"type": "note.taken", "id": "k", "data": {"a": 2}},
                {"type": "note.taken", "colour": "red"},
                {},
                {"type": "note.taken", "id": "k", "data": {"a": 1}},
            ]
        )
    assert [result if isinstance(result, int) else result.code for result in results] == [
        1, "invalid_event", 2, "invalid_event", "invalid_event", "invalid_event", 2,
    ]  # fmt: skip


def test_more_events_than_fit_one_message_are_all_stored(tmp_path: Path) -> None:
    with recorder(tmp_path) as mine:
        small = mine.record_many({"type": "note.taken"} for _ in range(2500))
        large = mine.record_many({"type": "note.taken", "data": {"x": "é" * 30_000}} for _ in range(60))
        assert mine.record_many([]) == []
    assert small == list(range(1, 2501))
    assert large == list(range(2501, 2561))


def test_outbox_full_reaches_the_caller_and_stored_events_stay(tmp_path: Path) -> None:
    limits = OutboxLimits(max_bytes=100_000)
    with recorder(tmp_path, limits=limits) as mine:
        results = mine.record_many({"type": "note.taken", "data": {"x": "y" * 60}} for _ in range(1000))
        recorded = [result for result in results if isinstance(result, int)]
        assert recorded == list(range(1, len(recorded) + 1))
        assert 100 < len(recorded) < 1000
        with pytest.raises(OutboxFull, match="nothing was recorded"):
            mine.record("note.taken", data={"x": "y" * 60_000})
    assert [event["seq"] for event in stored(tmp_path)] == recorded


def test_an_unusable_store_reaches_the_caller(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with recorder(tmp_path / "file") as mine, pytest.raises(StoreUnusable):
        mine.record("note.taken")


def test_threads_of_one_process_share_commits(tmp_path: Path) -> None:
    faults = Faults()
    commits: list[str] = []
    faults.fault = lambda sql: commits.append(sql) if sql == "COMMIT" else None

    def opening(home: Path, **options: Any) -> Any:
        from pisync_agent.outbox.outbox import open_outbox

        return open_outbox(home, connect=faults.connect, **options)

    mine = recorder(tmp_path, open_outbox=opening)
    found: list[int] = []
    hold = WriterLock(files.lock(tmp_path))
    hold.acquire(wait=True)
    threads = [threading.Thread(target=lambda: found.append(mine.record("note.taken"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(mine._group._waiting) == 19)
    commits.clear()
    hold.release()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(found) == list(range(1, 21))
    # The first caller's own, one for the other 19, and what making the file took.
    assert len(commits) <= 4
    mine.close()


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(DEADLINE_S * 1000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("waited in vain")


def test_it_waits_while_another_process_writes(tmp_path: Path) -> None:
    hold = WriterLock(files.lock(tmp_path))
    hold.acquire(wait=True)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 30:
            hold.release()

    with recorder(tmp_path, sleep=sleep) as mine:
        assert mine.record("note.taken") == 1
    assert len(slept) == 30
    assert max(slept) <= 0.05


def test_the_lock_is_free_between_records(tmp_path: Path) -> None:
    with recorder(tmp_path) as mine, recorder(tmp_path) as theirs:
        assert [mine.record("note.taken"), theirs.record("note.taken"), mine.record("note.taken")] == [1, 2, 3]
        with WriterLock(files.lock(tmp_path)):
            pass


def test_a_file_another_process_put_in_place_is_opened(tmp_path: Path) -> None:
    with recorder(tmp_path) as mine:
        mine.record("note.taken", data={"n": 1})
        other = opened(tmp_path)
        other.start_new_stream("conflict")
        assert mine.record("note.taken", data={"n": 2}) == 2
        assert seqs(other) == [1, 2]
        other.close()


def test_it_can_be_used_again_after_close(tmp_path: Path) -> None:
    mine = recorder(tmp_path)
    mine.record("note.taken")
    mine.close()
    mine.close()
    assert mine.record("note.taken") == 2
    mine.close()


def test_home_defaults_to_that_of_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Variable, then TOML file, then the user's own folder; the outbox's limits with it."""
    file = tmp_path / "agent.toml"
    file.write_text(f'home = "{tmp_path}/from-file"\nmax_queue = "1MiB"\n')
    for name in ("HOME", "CONFIG", "MAX_QUEUE"):
        monkeypatch.delenv(f"PISYNC_AGENT_{name}", raising=False)
    monkeypatch.setattr(config, "SYSTEM_FILE", file)
    with Recorder(clock=StillClock()) as mine:
        assert mine.record("note.taken") == 1
        assert (tmp_path / "from-file" / "outbox.db").exists()
        *_, last = mine.record_many({"type": "note.taken", "data": {"x": "y" * 60_000}} for _ in range(40))
        assert isinstance(last, OutboxFull)
        assert "of 1.0 MiB" in str(last)
    monkeypatch.setenv("PISYNC_AGENT_HOME", str(tmp_path / "from-variable"))
    with Recorder(clock=StillClock()) as mine:
        mine.record("note.taken")
    assert (tmp_path / "from-variable" / "outbox.db").exists()


def test_a_private_folder_beside_an_installed_service_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The service would never deliver from it. A link to the service's folder is that folder."""
    system, link = tmp_path / "system", tmp_path / "link"
    system.mkdir()
    link.symlink_to(system)
    monkeypatch.setattr(config, "SYSTEM_HOME", system)
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "no.toml")
    with recorder(tmp_path / "mine") as mine, pytest.raises(StoreUnusable) as refused:
        mine.record("note.taken")
    with recorder(link) as theirs:
        assert theirs.record("note.taken") == 1

    assert str(refused.value).startswith(f"{tmp_path / 'mine'} is not the folder of this device's service, {system}")
    assert "nothing was recorded. Record without naming a folder" in str(refused.value)
    assert not (tmp_path / "mine").exists()


def test_the_systems_settings_name_the_services_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "system").mkdir()
    (tmp_path / "agent.toml").write_text(f'home = "{tmp_path}/disk"\n')
    monkeypatch.setattr(config, "SYSTEM_HOME", tmp_path / "system")
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "agent.toml")
    with recorder(tmp_path / "disk") as mine:
        assert mine.record("note.taken") == 1
    with recorder(tmp_path / "system") as theirs, pytest.raises(StoreUnusable, match=f"{tmp_path}/disk"):
        theirs.record("note.taken")


@pytest.mark.parametrize("home", ["", "a\0b", "~no-such-user/x"])
def test_a_folder_that_cannot_be_is_refused_at_once(home: str) -> None:
    with pytest.raises(SettingError, match="home = "):
        Recorder(home)


def test_the_public_names() -> None:
    import pisync_agent

    assert sorted(pisync_agent.__all__) == ["InvalidEvent", "OutboxFull", "Recorder", "StoreUnusable"]
    assert all(getattr(pisync_agent, name) for name in pisync_agent.__all__)


# A service that answers as told


class Service:
    """Listens on the agent's socket; `answer(message)` gives the bytes to send back; without a line's end it closes."""

    def __init__(self, home: Path, answer: Callable[[dict[str, Any]], bytes | None]) -> None:
        self.messages: list[dict[str, Any]] = []
        self._answer = answer
        self._home = home
        self._listener = unix_socket.listen(files.socket(home), mode=0o600)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, peer.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    self.messages.append(message)
                    answer = self._answer(message)
                    peer.sendall(answer or b"")
                    if not (answer or b"").endswith(b"\n"):
                        break

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE_S)
        files.socket(self._home).unlink(missing_ok=True)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[[Callable[[dict[str, Any]], bytes | None]], Service]]:
    made: list[Service] = []

    def make(answer: Callable[[dict[str, Any]], bytes | None]) -> Service:
        made.append(Service(tmp_path, answer))
        return made[0]

    yield make
    for each in made:
        each.close()


Make = Callable[[Callable[[dict[str, Any]], bytes | None]], Service]


def test_events_go_through_a_running_service(tmp_path: Path, service: Make) -> None:
    running = service(lambda message: b'{"seqs":[41]}\n')
    with recorder(tmp_path) as mine:
        assert mine.record("note.taken", data={"n": 1}) == 41
        assert mine.record("note.taken", id="k") == 41
    first, second = (message["events"][0] for message in running.messages)
    assert (first["type"], first["data"]) == ("note.taken", '{"n":1}')
    assert isinstance(first["attempt"], int)
    assert (second["id"], second.get("attempt")) == ("k", None)
    assert not (tmp_path / "outbox.db").exists()


@pytest.mark.parametrize(
    ("code", "kind"),
    [("invalid_event", InvalidEvent), ("outbox_full", OutboxFull), ("store_unusable", StoreUnusable)],
)
def test_errors_of_the_service_reach_the_caller(
    tmp_path: Path, service: Make, code: str, kind: type[Exception]
) -> None:
    error = {"code": code, "detail": "what to do"}
    whole = json.dumps({"error": error}).encode() + b"\n"
    single = json.dumps({"seqs": [error]}).encode() + b"\n"
    service(lambda message: whole if message["events"][0]["type"] == "a.a" else single)
    with recorder(tmp_path) as mine:
        for name in ("a.a", "b.b"):
            with pytest.raises(kind, match="what to do"):
                mine.record(name)


@pytest.mark.parametrize("answer", [None, b"half a li", b"[]\n", b"not json\n", b"{}\n", b'{"seqs":[1,2]}\n'])
def test_a_failing_service_neither_loses_nor_doubles_events(
    tmp_path: Path, service: Make, answer: bytes | None
) -> None:
    """What was sent once may have been stored: it is asked about with the same attempt."""
    running = service(lambda message: answer)

    def sleep(seconds: float) -> None:
        assert not (tmp_path / "outbox.db").exists(), "while a service listens, no other process writes"
        if len(running.messages) > 3:
            files.socket(tmp_path).unlink()

    with recorder(tmp_path, sleep=sleep) as mine:
        seq = mine.record("note.taken", data={"n": 1})
    assert [event["data"] for event in stored(tmp_path)] == [{"n": 1}]
    assert seq == 1
    attempts = [message["events"][0]["attempt"] for message in running.messages]
    assert attempts == [attempts[0]] * 4, "it asks as long as a service listens"


def test_events_stored_by_a_dead_service_are_found(tmp_path: Path, service: Make) -> None:
    """It dies between commit and answer: the direct writer finds the event by its attempt."""
    from pisync_agent.outbox.events import NewEvent

    def commit_and_die(message: dict[str, Any]) -> bytes | None:
        files.socket(tmp_path).unlink(missing_ok=True)
        outbox = opened(tmp_path)
        outbox.append([NewEvent.from_fields(fields) for fields in message["events"]])
        outbox.close()
        return None

    service(commit_and_die)
    with recorder(tmp_path) as mine:
        assert mine.record("note.taken", data={"n": 1}) == 1
        assert mine.record("note.taken", data={"n": 1}) == 2
    assert [event["seq"] for event in stored(tmp_path)] == [1, 2]


# Fork


def test_a_child_makes_connections_of_its_own(tmp_path: Path) -> None:
    mine = recorder(tmp_path)
    assert mine.record("note.taken", data={"n": 1}) == 1
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(theirs, str(mine.record("note.taken", data={"n": 2})).encode())
            mine.close()
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        assert pipe.read() == "2"
    os.waitpid(child, 0)
    assert mine.record("note.taken", data={"n": 3}) == 3
    mine.close()
    assert [event["data"]["n"] for event in stored(tmp_path)] == [1, 2, 3]


def test_a_child_forked_in_the_middle_of_a_commit_holds_no_lock(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    faults = Faults()

    def pause(sql: str) -> None:
        if sql == "COMMIT" and faults_on:
            begun.set()
            assert go_on.wait(DEADLINE_S)

    faults_on: list[bool] = []
    faults.fault = pause

    def opening(home: Path, **options: Any) -> Any:
        from pisync_agent.outbox.outbox import open_outbox

        return open_outbox(home, connect=faults.connect, **options)

    mine = recorder(tmp_path, open_outbox=opening)
    mine.record("note.taken")
    faults_on.append(True)
    thread = threading.Thread(target=lambda: mine.record("note.taken"))
    thread.start()
    assert begun.wait(DEADLINE_S)
    ours, theirs = os.pipe()
    alive, child_alive = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(child_alive, b"x")
        os.read(ours, 1)  # lives on, and records nothing
        os._exit(0)
    assert os.read(alive, 1) == b"x"
    go_on.set()
    thread.join(DEADLINE_S)
    faults_on.clear()

    def sleep(seconds: float) -> None:
        raise AssertionError("the child holds the lock")

    try:
        with recorder(tmp_path, sleep=sleep) as other:
            assert other.record("note.taken") == 3
    finally:
        os.write(theirs, b"x")
        os.waitpid(child, 0)
        for end in (ours, theirs, alive, child_alive):
            os.close(end)
        mine.close()


# Documentation


def test_the_documented_example_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/recorder.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "watch.py").write_text(example)
    (tmp_path / "notes.json").write_text(
        json.dumps([{"id": f"n-{number}", "learner": "s-1", "time": 1_600_000_000, "text": "x"} for number in (1, 2)])
    )
    environ = os.environ | {"PISYNC_AGENT_HOME": str(tmp_path / "home")}
    for seq in (1, 4):
        done = subprocess.run(
            [sys.executable, "watch.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"event {seq} is stored; a power cut cannot lose it\n"
    with OutboxReader(tmp_path / "home") as reader:
        assert reader.state().last_seq == 4
        note = json.loads(reader.event(2) or "")
    assert (note["id"], note["occurred_at"]) == ("n-1", "2020-09-13T12:26:40.000Z")


def test_the_documented_arguments_are_those_of_record() -> None:
    page = (Path(__file__).parents[2] / "docs/recorder.md").read_text()
    arguments = set(inspect.signature(Recorder.record).parameters) - {"self"}
    assert all(f"| `{name}` |" in page for name in arguments)
