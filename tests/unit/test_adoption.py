"""Adopting another outbox: what is taken from it, once, whatever state it is in."""

import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pisync_agent.commands.adopt as commands
import pisync_agent.identity as identities
import pisync_agent.outbox.adopted as adopted
from pisync_agent.commands import cli
from pisync_agent.commands.usage import DONE, PENDING, UNUSABLE, WRONG_USAGE
from pisync_agent.errors import InvalidEvent
from pisync_agent.identity import Identity
from pisync_agent.outbox.adoption import Source
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.outbox.pointers import checksum
from pisync_agent.recorder import Recorder
from pisync_agent.service import protocol
from pisync_agent.service.lock import writer_lock
from pisync_common.models import Origin
from pisync_common.streams import INTERRUPTED
from pisync_common.times import from_ms
from tests.support.outboxes import STAMP, bodies, deliver, event, events, opened, receipt, seqs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Outbox]:
    with closing(opened(tmp_path / "old")) as outbox:
        yield outbox


def adopt(source: Path, home: Path, capsys: pytest.CaptureFixture[str], *flags: str, code: int = DONE) -> Any:
    """Run the command; return its JSON, or its error where it printed none."""
    assert cli.main(["adopt", str(source), "--home", str(home), "--json", *flags]) == code
    out, err = capsys.readouterr()
    return json.loads(out) if out else err


def numbers(home: Path) -> list[int]:
    """Return the test's own numbers of the events in an outbox, in their order."""
    with closing(opened(home)) as outbox:
        return [json.loads(body)["data"]["n"] for body in bodies(outbox)]


def closed(outbox: Outbox) -> Path:
    outbox.close()
    return outbox.path.parent


def test_an_adopted_event_keeps_all_but_its_number(old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {
        "id": "app-1",
        "learner_id": "Müller, Anna",
        "data": {"n": 1, "score": 0.6, "text": "a\nb"},
    }
    old.append([event(1, **given), event(2, occurred_at=from_ms(STAMP.at_ms - 60_000))])
    before = [json.loads(body) for body in bodies(old)]
    with closing(opened(home)) as own:
        own.append([event(0)])

    found = adopt(closed(old), home, capsys)

    assert (found["adopted"], found["refused"]) == (2, {})
    with closing(opened(home)) as own:
        after = [json.loads(body) for body in bodies(own, 1)]
    for number, (one, other) in enumerate(zip(before, after, strict=True), 1):
        assert other == one | {"seq": number + 1, "origin": {"stream": found["stream"], "seq": number}}


@pytest.mark.parametrize(("here", "named"), [("pibook-1", None), ("pibook-2", "pibook-1"), (None, "pibook-1")])
def test_an_origin_names_the_device_if_it_is_another(
    old: Outbox, home: Path, capsys: pytest.CaptureFixture[str], here: str | None, named: str | None
) -> None:
    """The receiver knows the events that a device delivered under that device's name."""
    old.append(events(1))
    home.mkdir()
    for folder, device_id in ((closed(old), "pibook-1"), (home, here)):
        if device_id is not None:
            identities.save(
                folder, Identity(url="https://example.org", device_id=device_id, token="pisync_d_" + "x" * 43)
            )

    adopt(old.path.parent, home, capsys)

    with closing(opened(home)) as own:
        (body,) = bodies(own)
    assert json.loads(body)["origin"].get("device_id") == named


def test_an_event_that_was_transferred_before_keeps_its_origin(
    old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = old.stream
    old.append(events(3))
    old.start_new_stream("test")

    assert adopt(closed(old), home, capsys)["adopted"] == 3

    with closing(opened(home)) as own:
        assert [json.loads(body)["origin"] for body in bodies(own)] == [
            {"stream": first, "seq": seq} for seq in (1, 2, 3)
        ]


def test_delivered_events_are_adopted_only_if_all_are_wanted(
    old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old.append(events(5))
    deliver(old, 3)
    folder = closed(old)
    copy = shutil.copytree(folder, folder.with_name("copy"))

    found = adopt(folder, home, capsys)

    assert (found["adopted"], found["delivered"]) == (2, 3)
    found = adopt(copy, home, capsys, "--all")
    assert (found["adopted"], found["adopted_before"]) == (3, 2)
    assert numbers(home) == [4, 5, 1, 2, 3]


def test_repeating_an_adoption_adds_nothing(old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old.append(events(5))
    folder = closed(old)
    found = adopt(folder, home, capsys)

    again = adopt(Path(found["moved_to"]), home, capsys)

    assert (again["adopted"], again["adopted_before"], again["moved_to"]) == (0, 5, None)
    assert numbers(home) == [1, 2, 3, 4, 5]


def test_what_was_adopted_is_known_after_a_salvage(old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old.append(events(2))
    folder = Path(adopt(closed(old), home, capsys)["moved_to"])
    with closing(opened(home)) as own:
        own.start_new_stream("test")

    assert adopt(folder, home, capsys)["adopted_before"] == 2


def test_two_copies_of_one_card_are_both_adopted(old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They have one stream, and different events under the same seqs."""
    folder = closed(old)
    copy = shutil.copytree(folder, folder.with_name("copy"))
    for each, first in ((folder, 1), (copy, 101)):
        with closing(opened(each)) as outbox:
            outbox.append(events(2, first=first))

    assert [adopt(each, home, capsys)["adopted"] for each in (folder, copy)] == [2, 2]
    assert numbers(home) == [1, 2, 101, 102]


def test_an_id_that_is_taken_here_loses_no_event(old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old.append([event(1, id="app-1"), event(2, id="app-2")])
    with closing(opened(home)) as own:
        own.append([event(3, id="app-1")])

    assert adopt(closed(old), home, capsys)["adopted"] == 2
    assert numbers(home) == [3, 1, 2]


def test_events_in_conflict_are_adopted_and_other_dead_letters_named(
    old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old.append(events(4))
    old.settle(receipt(old, 3, rejected=[(1, "conflict"), (2, "invalid_event")]), [1, 2, 3])

    found = adopt(closed(old), home, capsys, code=PENDING)

    assert found["dead_letters"] == {"invalid_event": 1}
    assert numbers(home) == [1, 4]


def test_a_log_is_read_and_the_source_left_as_it_is(
    old: Outbox, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy of a card that lost power: the newest events are in the log."""
    old.append(events(5))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("outbox.db", "outbox.db-wal"):
        shutil.copy(old.path.with_name(name), copy)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}

    found = adopt(copy, home, capsys)

    assert numbers(home) == [1, 2, 3, 4, 5]
    assert {file.name: file.read_bytes() for file in Path(found["moved_to"]).iterdir()} == before


def test_of_a_damaged_file_the_rest_is_adopted_and_the_loss_named(
    old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 41):
        old.append([event(number, size=2000)])
    path = closed(old) / "outbox.db"
    content = bytearray(path.read_bytes())
    content[0:100] = bytes(100)
    place = content.index(b'{"seq":20,')
    content[place + 40 : place + 50] = b"##########"
    path.write_bytes(content)

    found = adopt(path, home, capsys, code=PENDING)

    assert (found["refused_seqs"], found["missing"]) == ([20], 0)
    assert found["moved_to"] is None, "a file stays where it is"
    assert numbers(home) == [number for number in range(1, 41) if number != 20]


def test_events_of_which_nothing_can_be_read_are_counted(
    old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row in the middle loses its place."""
    for number in range(1, 41):
        old.append([event(number, size=2000)])
    path = closed(old) / "outbox.db"
    content = bytearray(path.read_bytes())
    place = content.index(b'{"seq":20,')
    content[place - 40 : place + 40] = bytes(80)
    path.write_bytes(content)

    found = adopt(path.parent, home, capsys, code=PENDING)

    assert found["missing"] >= 1
    assert found["adopted"] + found["missing"] == 40
    assert len(numbers(home)) == found["adopted"]


def test_without_its_row_of_pointers_everything_is_adopted(
    old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old.append(events(3))
    deliver(old, 2)
    with closing(sqlite3.connect(closed(old) / "outbox.db")) as file, file:
        file.execute("UPDATE pointers SET checksum = checksum + 1")

    found = adopt(old.path.parent, home, capsys, code=PENDING)

    assert (found["whole"], found["stream"]) == (False, old.stream)
    assert numbers(home) == [1, 2, 3]


def test_a_file_of_the_first_version_is_adopted(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.1 had other names for tables and columns, and no id in an event's text."""
    folder = tmp_path / "first"
    with closing(opened(folder)) as outbox:
        outbox.append(events(3))
    with closing(sqlite3.connect(folder / "outbox.db")) as file, file:
        for table, name in (("pointers", "state"), ("dead_letters", "dead"), ("sync_events", "reports")):
            file.execute(f"ALTER TABLE {table} RENAME TO {name}")
        file.execute("ALTER TABLE events RENAME COLUMN end_offset TO upto")
        file.execute("ALTER TABLE events RENAME COLUMN id TO key")
        values = ("first-stream", 1, 1, 0, 0)
        file.execute(
            "UPDATE state SET stream = ?, delivered = ?, watermark = ?, trimmed = ?, trimmed_offset = ?, checksum = ?",
            (*values, checksum(values)),
        )

    assert adopt(folder, home, capsys)["stream"] == "first-stream"
    assert numbers(home) == [2, 3]


def test_a_full_outbox_says_how_to_go_on(old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first in range(1, 1001, 100):
        old.append(events(100, first=first, size=3000))
    folder = closed(old)

    error = adopt(folder, home, capsys, "--max-queue", "1MiB", code=UNUSABLE)

    assert "the outbox is full" in error
    assert "Adopt it again to go on" in error
    assert folder.exists()
    found = adopt(folder, home, capsys)
    assert found["adopted"] > 0
    assert found["adopted_before"] > 0
    assert sorted(numbers(home)) == list(range(1, 1001))


def test_ctrl_c_says_how_to_go_on(
    old: Outbox, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old.append(events(5))
    monkeypatch.setattr(commands, "GROUP", 2)
    record_many, calls = Recorder.record_many, itertools.count(1)

    def interrupted(self: Recorder, *arguments: Any, **more: Any) -> list[Any]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return record_many(self, *arguments, **more)

    monkeypatch.setattr(Recorder, "record_many", interrupted)
    error = adopt(closed(old), home, capsys, code=INTERRUPTED)
    assert "2 of 5 events are adopted, and nothing of the source was changed. Adopt it again" in error
    found = adopt(old.path.parent, home, capsys)
    assert (found["adopted"], found["adopted_before"]) == (3, 2)


def test_a_service_of_another_version_is_asked_for_nothing(
    old: Outbox, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older one would not know that an event is adopted, and record it twice."""
    old.append(events(1))
    monkeypatch.setattr(protocol, "live_status", lambda socket: {"version": "0.2.0"})
    assert "is still version 0.2.0" in adopt(closed(old), home, capsys, code=UNUSABLE)
    assert not home.exists()


def test_the_own_outbox_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(opened(home)) as own:
        own.append(events(1))

    for name in (home, home / "outbox.db"):
        assert "already" in adopt(name, home, capsys, code=WRONG_USAGE)
    assert numbers(home) == [1]


def test_a_folder_without_an_outbox_is_refused(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (tmp_path, tmp_path / "missing"):
        assert "there is no outbox" in adopt(name, home, capsys, code=WRONG_USAGE)
    assert not home.exists()


def test_an_outbox_in_use_is_refused(old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = closed(old)
    with writer_lock(folder / "outbox.lock"):
        assert f"is in use by process {os.getpid()}" in adopt(folder, home, capsys, code=UNUSABLE)
    assert not home.exists()


def test_a_newer_file_is_refused(old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old.append(events(1))
    with closing(sqlite3.connect(closed(old) / "outbox.db")) as file:
        file.execute("PRAGMA user_version = 99")

    assert "written by a newer PiSync" in adopt(old.path.parent, home, capsys, code=UNUSABLE)


def test_another_programs_database_is_refused(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT)")
        file.execute("INSERT INTO things VALUES (1, 'one')")

    assert "holds nothing of an outbox" in adopt(path, home, capsys, code=UNUSABLE)


def test_a_stream_whose_name_is_lost_has_a_name_of_its_own(old: Outbox) -> None:
    old.append(events(2))
    with closing(sqlite3.connect(closed(old) / "outbox.db")) as file, file:
        file.execute("DELETE FROM pointers")
        file.execute("DELETE FROM notes")

    with Source(old.path) as source:
        assert source.stream.startswith("unknown-")
        assert len(source.stream) == len("unknown-") + 16


def adopted_event(number: int, source: str, seq: int) -> NewEvent:
    fields = event(number).fields() | {"origin": ["old", seq, None], "adopted_from": [source, seq, None]}
    return NewEvent.from_fields(fields)


def test_one_group_adopts_an_event_once(home: Path) -> None:
    with Recorder(home) as recorder:
        assert recorder.record_many([adopted_event(1, "a", 1), adopted_event(1, "a", 1)]) == [1, 0]
        assert recorder.record_many([adopted_event(1, "a", 1), adopted_event(2, "a", 2)]) == [0, 2]


def test_what_is_noted_is_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopted, "SOURCES_MAX", 2)
    monkeypatch.setattr(adopted, "RANGES_MAX", 2)
    with Recorder(home) as recorder:
        for source, seq, expected in (("a", 1, 1), ("a", 3, 2), ("b", 1, 3), ("a", 4, 4)):
            assert recorder.record_many([adopted_event(1, source, seq)]) == [expected]
        for source, seq in (("a", 9), ("c", 1)):
            (result,) = recorder.record_many([adopted_event(1, source, seq)])
            assert isinstance(result, InvalidEvent)


@pytest.mark.parametrize(
    "place",
    [["s", 1], ["s", 0, None], ["s", None, None], ["s", True, None], ["", 1, None], [1, 1, None], ["s", 1, ""], "s"],
)
def test_a_place_from_another_process_is_checked(place: object) -> None:
    for name in ("origin", "adopted_from"):
        with pytest.raises(InvalidEvent):
            NewEvent.from_fields(event(1).fields() | {name: place})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seq":1}', '{"type":"a.b","occurred_at":"x"}', "1" * 5000])
def test_a_text_that_is_no_event_is_refused(text: str) -> None:
    place = Origin(stream="s", seq=1)
    with pytest.raises(InvalidEvent):
        NewEvent.from_body(text, origin=place, adopted_from=place)


def test_a_seq_counts_on_behind_adopted_events(old: Outbox, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old.append(events(2))
    adopt(closed(old), home, capsys)
    with closing(opened(home)) as own:
        assert own.append(events(1)) == [3]
        assert seqs(own) == [1, 2, 3]
