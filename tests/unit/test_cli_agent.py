"""The device's command line: what it understands, what it prints, its exit codes; and its documentation."""

import argparse
import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import settings as fuzz_settings
from hypothesis import strategies as st

from pisync_agent import config, formatting
from pisync_agent.commands import cli, record, status, sync
from pisync_agent.commands.usage import WrongUsage, exit_code
from pisync_agent.errors import (
    BadAnswer,
    InvalidEvent,
    NotEnrolled,
    OutboxFull,
    Overloaded,
    Refused,
    StoreUnusable,
    Unreachable,
)
from pisync_agent.outbox.app_events import whole_event
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.models import LAST_RUN
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.recorder import Recorder
from pisync_common.errors import LockHeld, PiSyncError, SettingError
from pisync_common.models import Receipt, Rejection, Stamp
from pisync_common.settings import Setting

STAMP = Stamp(at_ms=1_700_000_000_000, boot_id="boot", boottime_ms=1, clock_synced=True)

Commands = argparse._SubParsersAction


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Pisync:
    """Runs commands in this process, in one home."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = folder
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str, stdin: str | None = None) -> Ran:
        if stdin is not None:
            file = self.home.with_name("stdin")
            file.write_text(stdin)
            self._monkeypatch.setattr(sys, "stdin", file.open())
        try:
            code = cli.main(arguments)
        except SystemExit as ended:  # argparse's own way out
            code = int(ended.code or 0)
        finally:
            if stdin is not None:
                sys.stdin.close()
        return Ran(code, *self._capsys.readouterr())


@pytest.fixture
def pisync(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pisync:
    for name in list(os.environ):
        if name.startswith("PISYNC_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "no.toml")
    monkeypatch.setenv("PISYNC_AGENT_HOME", str(tmp_path / "home"))
    return Pisync(tmp_path / "home", capsys, monkeypatch)


@pytest.fixture
def outbox(pisync: Pisync) -> Iterator[Outbox]:
    made = open_outbox(pisync.home)
    yield made
    made.close()


def fill(outbox: Outbox, number: int) -> None:
    outbox.append([NewEvent.create("note.taken", stamp=STAMP, learner_id=f"s-{n}") for n in range(number)])


def reject(outbox: Outbox, seq: int) -> None:
    """The receiver took the events up to `seq`, and rejected the last."""
    receipt = Receipt(
        device_id="d", stream=outbox.stream, stored=seq - 1, duplicates=0, watermark=seq, server_time="",
        rejected=(Rejection(seq=seq, code="invalid_event", detail="too old"),),
    )  # fmt: skip
    outbox.settle(receipt, range(1, seq + 1))


# record


def test_record_prints_the_bare_seq(pisync: Pisync) -> None:
    assert pisync("record", "video.watched", "--learner", "s-17", "--object", "math/1", "--data", '{"a": 1}') == (
        0, "1\n", "",
    )  # fmt: skip
    assert pisync("record", "video.watched").out == "2\n"
    event = json.loads(pisync("queue", "show", "1", "--json").out)
    assert (event["type"], event["learner_id"], event["object_id"], event["data"]) == (
        "video.watched", "s-17", "math/1", {"a": 1},
    )  # fmt: skip


def test_the_time_of_the_event_can_be_given(pisync: Pisync) -> None:
    assert pisync("record", "note.taken", "--at", "2020-02-29T23:30:00+03:00").out == "1\n"
    line = {"type": "note.taken", "occurred_at": "2020-02-29T20:30:00.5Z"}
    assert pisync("record", "-", stdin=json.dumps(line)).out == "2\n"

    events = [json.loads(pisync("queue", "show", seq, "--json").out) for seq in ("1", "2")]
    assert [event["occurred_at"] for event in events] == ["2020-02-29T20:30:00.000Z", "2020-02-29T20:30:00.500Z"]
    assert all(event["recorded_at"] > "2026" for event in events)


def test_the_same_id_twice_stores_once(pisync: Pisync) -> None:
    assert [pisync("record", "note.taken", "--id", "app-1").out for _ in range(2)] == ["1\n", "1\n"]
    again = pisync("record", "note.taken", "--id", "app-1", "--learner", "other")

    assert (again.code, again.out) == (2, "")
    assert "app-1" in again.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Video",), "noun.verb"),
        (("video.watched", "--learner", "a\nb"), "learner_id"),
        (("video.watched", "--at", "yesterday"), "--at"),
        (("video.watched", "--at", "2026-11-23T10:00:00"), "--at"),
        (("note.taken", "--data", "-", "--at", "2026-11-23T10:00:00Z"), "--at"),
        (("video.watched", "--object", "a\nb"), "object_id"),
        (("video.watched", "--id", ""), "id must be"),
        (("video.watched", "--data", "{"), "--data is not JSON"),
        (("video.watched", "--data", "[1]"), "object"),
        (("video.watched", "--data", '{"a": NaN}'), "JSON"),
        (("video.watched", "--data", json.dumps({"a": "x" * 70_000})), "limit"),
        ((), "TYPE"),
        (("-", "--learner", "s-1"), "whole event"),
        (("note.taken", "--data", "-", "--id", "k"), "--id"),
        (("video.watched", "--lear", "s-1"), "unrecognized"),
    ],
)
def test_invalid_record_commands_are_rejected(pisync: Pisync, arguments: Sequence[str], said: str) -> None:
    ran = pisync("record", *arguments)

    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert not (pisync.home / "outbox.db").exists() or pisync("status", "--json").json["last_seq"] == 0


def test_many_events_of_one_type(pisync: Pisync) -> None:
    ran = pisync("record", "note.taken", "--learner", "s-1", "--data", "-", stdin='{"n": 1}\n\n{"n": 2}\n{"n": 3}')

    assert ran == (0, "1\n\n2\n3\n", "")
    events = [json.loads(pisync("queue", "show", str(seq), "--json").out) for seq in (1, 2, 3)]
    assert [(event["learner_id"], event["data"]) for event in events] == [("s-1", {"n": n}) for n in (1, 2, 3)]


def test_many_whole_events(pisync: Pisync) -> None:
    lines = [
        {"type": "note.taken", "learner_id": "s-1", "object_id": "o", "data": {"n": 1}, "id": "k"},
        {"type": "video.watched"},
        {"type": "note.taken", "learner_id": "s-1", "object_id": "o", "data": {"n": 1}, "id": "k"},
    ]
    ran = pisync("record", "-", stdin="\n".join(map(json.dumps, lines)) + "\n")

    assert ran == (0, "1\n2\n1\n", "")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", '"type"'),
        ('{"type": "x"}', "noun.verb"),
        ('{"type": "a.b", "learner": "s-1"}', "unknown field 'learner'"),
        ('{"type": "a.b", "data": 7}', "data"),
        ('{"type": "a.b", "learner_id": 7}', "learner_id"),
        ('{"type": "a.b", "occurred_at": 7}', "occurred_at"),
        ('{"type": "a.b", "occurred_at": "2026-13-01T00:00:00Z"}', "occurred_at"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_an_invalid_line_ends_it_and_the_lines_before_are_stored(pisync: Pisync, bad: str, said: str) -> None:
    ran = pisync("record", "-", stdin=f'{{"type": "a.b"}}\n\n{{"type": "a.b"}}\n{bad}\n{{"type": "a.b"}}\n')

    assert (ran.code, ran.out) == (2, "1\n\n2\n")
    assert "line 4: " in ran.err
    assert "send again from line 4" in ran.err
    assert said in ran.err
    assert pisync("status", "--json").json["waiting"] == 2


def test_an_id_with_other_content_ends_it_too(pisync: Pisync) -> None:
    ran = pisync("record", "-", stdin='{"type": "a.b", "id": "k"}\n{"type": "a.c", "id": "k"}\n')

    assert (ran.code, ran.out) == (2, "1\n")
    assert "line 2" in ran.err


def test_an_empty_input_is_not_an_error(pisync: Pisync) -> None:
    assert pisync("record", "-", stdin="") == (0, "", "")


def test_a_line_without_an_end_is_rejected_early(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b'{"type": "a.b"}\n' + b"[" * 3_000_000)
    out = io.StringIO()
    with (
        file.open("rb") as source,
        Recorder(tmp_path / "home") as recorder,
        pytest.raises(InvalidEvent, match="line 2"),
    ):
        record.record_lines(recorder, whole_event, source=source.fileno(), out=out)

    assert out.getvalue() == "1\n"


# status


def test_the_status_of_a_new_device(pisync: Pisync) -> None:
    shown, found = pisync("status"), pisync("status", "--json")

    assert (shown.code, found.code) == (4, 4)
    assert "not enrolled" in shown.out
    assert (found.json["waiting"], found.json["enrolled"], found.json["service"]) == (0, False, False)
    assert not pisync.home.exists(), "looking makes nothing"


def test_status_has_the_fields_that_scripts_rely_on(pisync: Pisync, outbox: Outbox) -> None:
    fill(outbox, 3)
    found = pisync("status", "--json").json

    wanted = {"device_id", "stream", "waiting", "dead", "watermark", "enrolled", "service", "last_run", "next_run_in_s"}
    assert wanted <= found.keys()
    assert (found["waiting"], found["dead"], found["stream"]) == (3, 0, outbox.stream)


def test_status_shows_no_cap_that_only_the_writer_knows(pisync: Pisync, outbox: Outbox) -> None:
    assert "bytes_max" not in pisync("status", "--json").json


def test_status_says_which_apps_need_the_service(
    pisync: Pisync, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "apps of this user record without it" in pisync("status").out

    monkeypatch.setattr(config, "SYSTEM_HOME", pisync.home)
    assert "apps of other users cannot record until it runs" in pisync("status").out


def enrolled(folder: Path) -> None:
    (folder / "identity.json").write_text('{"device_id": "pibook-1", "url": "https://r.example", "token": "psd_x"}')


@pytest.mark.parametrize(
    ("waiting", "dead", "failure", "code"),
    [
        (0, 0, None, 0),
        (1, 0, None, 1),
        (0, 1, None, 1),
        (1, 0, "unreachable", 3),
        (1, 0, "refused", 4),
        (1, 0, "overloaded", 1),
        (0, 0, "unreachable", 0),
        (0, 1, "unreachable", 1),
    ],
)
def test_the_exit_code_of_status_says_whether_all_is_well(
    waiting: int, dead: int, failure: str | None, code: int
) -> None:
    run = {"failure": failure and {"code": failure}}

    sound = {"enrolled": True, "outbox_fault": None, "write_fault": None, "spool": None}
    assert status.verdict({**sound, "waiting": waiting, "dead": dead, "last_run": run}) == code


def test_status_answers_a_technicians_questions(pisync: Pisync, outbox: Outbox) -> None:
    enrolled(pisync.home)
    fill(outbox, 3)
    reject(outbox, 2)
    outbox.set_note(
        LAST_RUN,
        json.dumps(
            {"at_ms": 1_700_000_000_000, "delivered": 1, "rejected": 1,
             "failure": {"code": "unreachable", "kind": "portal", "detail": "a log-in page answered"}}
        ),
    )  # fmt: skip
    ran = pisync("status")

    assert ran.code == 3
    for said in ("pibook-1", "https://r.example", "1 event pending", "1 to 2 delivered of 3", "1 event: see", "portal",
                 "log-in page", "not scheduled", "clock", "free"):  # fmt: skip
        assert said in ran.out, said
    assert "psd_x" not in ran.out + pisync("status", "--json").out, "the token is not shown"


@pytest.mark.parametrize(
    "note",
    ["", "no JSON", "[" * 9000, "7", "null", "[]", "{}", '{"at_ms": "now"}', '{"at_ms": 1e400}', '{"at_ms": true}',
     '{"at_ms": 5, "delivered": "x", "rejected": [], "failure": 7}', '{"at_ms": 5, "failure": {"code": 7}}',
     '{"at_ms": 5, "failure": {"kind": {}, "detail": null}, "seconds": NaN}', '{"at_ms": -1}', '{"at_ms": 1e18}',
     '{"at_ms": 9007199254740993000}'],
)  # fmt: skip
def test_status_survives_a_damaged_note_of_the_last_run(pisync: Pisync, outbox: Outbox, note: str) -> None:
    fill(outbox, 1)
    outbox.set_note(LAST_RUN, note)

    shown, found = pisync("status"), pisync("status", "--json")

    assert (shown.code, found.code) == (4, 4), "not enrolled"
    assert found.json["waiting"] == 1


def test_status_of_a_broken_outbox_says_what_to_do(pisync: Pisync, outbox: Outbox) -> None:
    outbox.close()
    (pisync.home / "outbox.db").write_bytes(b"not a database, for sure" * 400)
    ran = pisync("status")

    assert ran.code == 5
    assert ran.out.startswith("Needs help: ")
    assert "nothing is lost" not in ran.out, "only the salvage can tell"


# queue


def test_the_queue_lists_pending_events(pisync: Pisync, outbox: Outbox) -> None:
    fill(outbox, 5)
    reject(outbox, 2)

    rows = pisync("queue", "list", "--json").json
    assert [(row["seq"], row["state"], row["learner_id"]) for row in rows] == [
        (3, "waiting", "s-2"), (4, "waiting", "s-3"), (5, "waiting", "s-4"),
    ]  # fmt: skip
    everything = pisync("queue", "list", "--all", "--json").json
    assert [row["state"] for row in everything] == ["delivered", "dead", "waiting", "waiting", "waiting"]
    some = pisync("queue", "list", "--limit", "1", "--after", "3")
    assert some.out.split()[:2] == ["4", "waiting"]
    assert "--after 4" in some.out


def test_dead_letters_are_listed_shown_and_requeued(pisync: Pisync, outbox: Outbox) -> None:
    fill(outbox, 2)
    reject(outbox, 1)

    (letter,) = pisync("queue", "dead", "--json").json
    assert (letter["seq"], letter["code"], letter["detail"]) == (1, "invalid_event", "too old")
    assert letter["requeued_as"] is None
    assert "too old" in pisync("queue", "dead").out
    outbox.close()
    assert pisync("queue", "requeue", "1") == (0, "3\n", "")
    assert pisync("queue", "requeue", "1", "--json").json == {"seq": 3}
    assert json.loads(pisync("queue", "show", "3", "--json").out)["origin"]["seq"] == 1
    assert "requeued as 3" in pisync("queue", "dead").out


@pytest.mark.parametrize("arguments", [("list",), ("dead",)])
def test_an_empty_queue_is_not_an_error(pisync: Pisync, arguments: Sequence[str]) -> None:
    ran = pisync("queue", *arguments)
    assert (ran.code, ran.out) == (0, "")
    assert "pisync: no event" in ran.err
    assert pisync("queue", *arguments, "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "7"), "no event 7"),
        (("show", "seven"), "whole number"),
        (("show", "-1"), "SEQ"),
        (("show", "9" * 30), "whole number"),
        (("requeue", "7"), "no dead letter 7"),
        (("requeue", "x"), "whole number"),
        (("list", "--limit", "many"), "--limit"),
        (("list", "--after", "1.5"), "--after"),
        (("dig",), "invalid choice"),
        ((), "COMMAND"),
    ],
)
def test_invalid_queue_commands_are_rejected(pisync: Pisync, arguments: Sequence[str], said: str) -> None:
    ran = pisync("queue", *arguments)

    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


# config


def test_config_shows_values_and_sources(pisync: Pisync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('sync_interval = "5m"\n')
    monkeypatch.setenv("PISYNC_AGENT_LOG_LEVEL", "debug")
    rows = pisync("config", "--json", "--config", str(file), "--max-queue", "64MiB").json
    found = {row["name"]: (row["value"], row["source"]) for row in rows}

    assert [row["name"] for row in rows] == [setting.name for setting in config.SETTINGS]
    assert found["sync_interval"] == ("5m", f"file {file}")
    assert found["log_level"] == ("debug", "variable PISYNC_AGENT_LOG_LEVEL")
    assert found["max_queue"] == ("64MiB", "flag --max-queue")
    assert found["retry_cap"] == ("15m", "default")
    assert "sync_interval" in pisync("config").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-queue", "1"), "max_queue = '1'"),
        (("--sync-interval", "0"), "sync_interval"),
        (("--retry-base", "soon"), "retry_base"),
        (("--log-level", "loud"), "log_level"),
        (("--home", ""), "home"),
        (("--config", "/nowhere.toml"), "no such file"),
    ],
)
def test_an_invalid_setting_is_wrong_usage(pisync: Pisync, arguments: Sequence[str], said: str) -> None:
    ran = pisync("config", *arguments)

    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


@fuzz_settings(max_examples=200)
@given(
    setting=st.sampled_from(config.SETTINGS),
    value=st.one_of(
        st.text(max_size=60),
        st.text(st.characters(categories=["Cs"]) | st.sampled_from("~/.:,@[]%?#0\0\n é"), max_size=20),
        st.builds(
            "{}{}{}".format,
            st.sampled_from(
                ["", "~", "~x/", "sqlite:///", "postgresql://", "http://", "redis://", "amqp://", "-", "9" * 400]
            ),
            st.text(max_size=20),
            st.sampled_from(["", "w", "GiB", "/", ":99999", "%zz", "]", "\0", "\udcff"]),
        ),
    ),
)
def test_any_value_is_taken_or_refused_as_a_setting_error(setting: Setting[Any], value: str) -> None:
    with contextlib.suppress(SettingError):
        config.settings_from(argparse.Namespace(**{setting.name: value}), {"HOME": "/home/ann"})


@pytest.mark.parametrize("setting", config.SETTINGS, ids=lambda setting: setting.name)
def test_every_time_and_size_is_bounded(setting: Setting[Any]) -> None:
    huge = {"TIME": "100000w", "SIZE": "999999999999999GiB"}.get(setting.metavar or "")
    if huge is not None:
        with pytest.raises(ValueError, match=r"longest|largest"):
            setting.parse(huge)


@pytest.mark.parametrize("kind", ["folder", "link to nowhere"])
def test_the_systems_folder_is_the_default_of_everyone(
    pisync: Pisync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A private folder beside it would strand what an app records, also while its card is not mounted."""
    system = tmp_path / "system"
    monkeypatch.delenv("PISYNC_AGENT_HOME")
    monkeypatch.setattr(config, "SYSTEM_HOME", system)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "mine"))

    assert pisync("status", "--json").json["home"] == str(tmp_path / "mine/pisync")
    if kind == "folder":
        system.mkdir()
    else:
        system.symlink_to(tmp_path / "nowhere")
    assert pisync("config").out.split()[:3] == ["home", str(system), "(default)"]
    assert pisync("record", "a.b").code == (0 if kind == "folder" else 5)
    with Recorder() as recorder:
        assert recorder._home == system
    assert pisync("status", "--json", "--home", str(tmp_path / "other")).json["home"] == str(tmp_path / "other")
    assert not (tmp_path / "mine").exists()


def test_the_toml_file_can_set_home(pisync: Pisync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PISYNC_AGENT_HOME")
    file = tmp_path / "agent.toml"
    file.write_text(f'home = "{tmp_path / "elsewhere"}"\n')

    assert pisync("record", "a.b", "--config", str(file)).out == "1\n"
    assert pisync("status", "--json", "--config", str(file)).json["home"] == str(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/outbox.db").exists()


# Errors and exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingError("x"), 2),
        (WrongUsage("x"), 2),
        (InvalidEvent("x"), 2),
        (NotEnrolled("x"), 4),
        (Refused("x", kind="auth"), 4),
        (Unreachable("x", kind="dns"), 3),
        (Overloaded("x", kind="http_5xx"), 1),
        (BadAnswer("x", kind="http_4xx"), 1),
        (OutboxFull("x"), 5),
        (StoreUnusable("x"), 5),
        (LockHeld("x"), 5),
    ],
)
def test_exit_codes(error: PiSyncError, code: int) -> None:
    assert exit_code(error) == code


def test_a_home_that_cannot_be_created_is_an_unusable_store(pisync: Pisync, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (("record", "a.b"), ("queue", "list")):
        ran = pisync(*arguments, "--home", str(tmp_path / "file" / "home"))
        assert (ran.code, ran.out) == ((5, "") if arguments[0] == "record" else (0, "")), arguments


def test_ctrl_c_exits_without_a_traceback(pisync: Pisync, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(home: Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "collect", interrupted)

    assert pisync("status") == (130, "", "")


def test_a_closed_pipe_prints_no_error(tmp_path: Path) -> None:
    environ = os.environ | {"PISYNC_AGENT_HOME": str(tmp_path)}
    code = f"{sys.executable} -m pisync_agent config --json | true"
    done = subprocess.run(["bash", "-c", code], env=environ, capture_output=True, text=True, check=False)

    assert done.stderr == ""


# Words


@pytest.mark.parametrize(
    ("given", "shown"), [(5, "5 s"), (89, "89 s"), (120, "2 min"), (3 * 3600 + 300, "3 h 5 min"), (9 * 86400, "9 days")]
)
def test_spans_are_shown_in_suitable_units(given: float, shown: str) -> None:
    assert formatting.span(given) == shown


def test_a_time_outside_the_calendar_is_shown_as_a_number() -> None:
    assert "since 1970" in formatting.moment(10**25)


def test_progress_is_one_live_line_on_a_terminal() -> None:
    stream = io.StringIO()
    meter = sync.Meter(stream, live=True)
    meter.show({"step": "sending", "events": 10, "of": 100, "bytes": 2048, "speed_mbit": 1.25, "seconds_left": 90})
    meter.show({"step": "sending", "events": 20, "of": 100, "bytes": 4096, "speed_mbit": 1.25, "seconds_left": 80})
    meter.end()

    shown = stream.getvalue()
    assert "sending: 20 of 100 events, 4.0 KiB, 1.2 Mbit/s, 80 s left" in shown
    assert "\n" not in shown
    assert shown.endswith("\r\x1b[K")


def test_progress_is_one_line_a_step_without_a_terminal() -> None:
    stream = io.StringIO()
    meter = sync.Meter(stream)
    for events, step in ((0, "sending"), (5, "sending"), (9, "asking")):
        meter.show({"step": step, "events": events, "of": 9, "bytes": 0, "speed_mbit": None, "seconds_left": None})
    meter.end()

    assert stream.getvalue() == "sending: 0 of 9 events\nasking: 9 of 9 events\n"


# Documentation is tested


def walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """`parser` and every command below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, Commands):
            for below in action.choices.values():
                yield from walk(below)


PARSERS = list(walk(cli.build_parser()))
LEAVES = [parser for parser in PARSERS if not any(isinstance(action, Commands) for action in parser._actions)]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_every_command_has_a_description_and_an_example(parser: argparse.ArgumentParser) -> None:
    shown = parser.format_help()
    assert parser.description
    assert f"  {parser.prog}" in shown.partition("example")[2]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_help_fits_a_terminal(parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in parser.format_help().splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_every_flag_has_help(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if not isinstance(action, Commands):
            assert action.help, action.option_strings or action.dest


def test_without_a_command_the_help_is_printed(pisync: Pisync) -> None:
    ran = pisync()

    assert (ran.code, ran.err) == (0, "")
    assert all(f"  {entry.typed} " in ran.out for entry in cli.ENTRIES)
    assert all(f"{task}:\n" in ran.out for task in cli.TASKS)
    assert pisync("--help").out == ran.out


def test_a_mistyped_command_is_refused_with_the_known_commands(pisync: Pisync) -> None:
    ran = pisync("stauts")

    assert (ran.code, ran.out) == (2, "")
    assert "'stauts'" in ran.err
    assert "status" in ran.err


@pytest.mark.parametrize("entry", cli.ENTRIES, ids=lambda entry: entry.typed)
def test_every_example_parses(entry: cli.Entry) -> None:
    words = shlex.split(entry.example)

    assert cli.parse(words).run == cli.build_parser().parse_args(words).run == entry.command.run


def test_run_and_config_take_every_setting() -> None:
    wanted = {setting.option for setting in config.SETTINGS}
    for parser in LEAVES:
        given = {option for action in parser._actions for option in action.option_strings}
        assert {"--home", "--config"} <= given
        if parser.prog.split()[-1] in ("run", "config"):
            assert wanted <= given, parser.prog


def test_flags_cannot_be_abbreviated() -> None:
    assert not any(parser.allow_abbrev for parser in PARSERS)


def test_status_imports_no_slow_library() -> None:
    code = (
        "import sys; from pisync_agent.__main__ import main\n"
        "sys.argv = ['pisync', 'status', '--home', '/nowhere']\n"
        "main()\n"
        "slow = {'asyncio', 'httpx', 'platformdirs', 'ssl', 'tenacity', 'tomllib'}\n"
        "print(sorted(slow & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr == "[]\n"


@pytest.mark.parametrize("library", ["httpx", "tenacity", "platformdirs"])
def test_a_missing_library_is_one_line_that_names_the_extra(tmp_path: Path, library: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PISYNC_")}
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from pathlib import Path; import pisync_agent.config as c; c.SYSTEM_HOME = Path('/no/service/here')\n"
        "from pisync_agent.__main__ import main\n"
        "sys.argv = ['pisync', 'sync']\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environ
        | {"HOME": str(tmp_path)}
        | ({} if library == "platformdirs" else {"PISYNC_AGENT_HOME": "/nowhere"}),
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f'pisync: {library} is not installed; this installation lacks the "agent" extra')
    assert done.stderr.count("\n") == 1
    assert "docs/device.md" in done.stderr
    assert "pip install" not in done.stderr
