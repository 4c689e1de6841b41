"""`pisync record -`: whatever the lines are, a prefix is stored and printed, and a caller can go on behind it."""

import io
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pisync_agent.commands import record
from pisync_agent.commands.usage import Unfinished
from pisync_agent.errors import AgentError, InvalidEvent, OutboxFull, StoreUnusable
from pisync_agent.outbox.app_events import whole_event
from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.models import OutboxLimits
from pisync_agent.recorder import Recorder
from pisync_common.limits import MIB
from pisync_common.streams import OutputFailed
from tests.support.outboxes import opened

LINES: Mapping[str, Callable[[int], str]] = {
    "plain": lambda n: json.dumps({"type": "a.b", "data": {"n": n}}),
    "mark": lambda n: "\ufeff" + json.dumps({"type": "a.b", "data": {"n": n}}),
    "long": lambda n: json.dumps({"type": "a.b", "data": {"n": n, "x": "y" * 300}}),
    "empty": lambda n: " " * (n % 3),
    "key": lambda n: json.dumps({"type": "a.b", "id": "key"}),
    "other content": lambda n: json.dumps({"type": "a.b", "id": "key", "data": {"n": n}}),
    "not JSON": lambda n: "{",
    "not an event": lambda n: '{"type": "A"}',
    "not UTF-8": lambda n: '{"type": "a.b", "learner_id": "\udcff"}',
}
KINDS = st.lists(st.one_of(st.sampled_from(["plain", "long", "empty"]), st.sampled_from(list(LINES))), max_size=25)


class Model:
    """What is to be stored of the lines, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def take(self, lines: Sequence[str]) -> int | None:
        """Return the number of the line that is refused."""
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                line.encode()
                event = json.loads(line.removeprefix("\ufeff"))
            except ValueError:
                return number
            same = [known for known in self.events if "id" in event and known.get("id") == event["id"]]
            if event["type"] == "A" or same not in ([], [event]):
                return number
            if not same:
                self.events.append(event)
        return None


def sent(recorder: Recorder, content: bytes, out: io.StringIO | None = None) -> tuple[list[str], Exception | None]:
    """Send lines; return what was printed, and how it ended."""
    out = out or io.StringIO()
    with TemporaryDirectory() as folder:
        file = Path(folder, "lines")
        file.write_bytes(content)
        with file.open("rb") as source:
            try:
                record.record_lines(recorder, whole_event, source=source.fileno(), out=out)
            except (AgentError, Unfinished) as error:
                return out.getvalue().splitlines(), error
    return out.getvalue().splitlines(), None


def stored(home: Path) -> list[Any]:
    outbox = opened(home)
    bodies = [json.loads(text) for _, text in outbox.read(0, max_events=10_000, max_bytes=10**9)]
    outbox.close()
    return [{name: body[name] for name in ("type", "id", "data") if name in body} for body in bodies]


def numbered(count: int, *, first: int = 1, size: int = 0) -> bytes:
    lines = ({"type": "a.b", "data": {"n": n, "x": "y" * size}} for n in range(first, first + count))
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@settings(max_examples=60)
@given(
    kinds=KINDS, end=st.sampled_from(["\n", "\r\n"]), group=st.integers(1, 9), chunk=st.sampled_from([7, 100, 262_144])
)
@example(kinds=["plain", "key", "other content", "plain", "plain"], end="\n", group=9, chunk=262_144)
def test_a_caller_that_goes_on_from_the_named_line_loses_and_doubles_nothing(
    kinds: list[str], end: str, group: int, chunk: int
) -> None:
    """The nth line printed belongs to the nth line sent; nothing behind a refused line is stored or printed."""
    lines, model = [LINES[kind](n) for n, kind in enumerate(kinds)], Model()
    with TemporaryDirectory() as home, patch.multiple(record, GROUP_LINES=group, CHUNK_BYTES=chunk):
        while True:
            refused = model.take(lines)
            with Recorder(home) as recorder:
                printed, error = sent(recorder, "".join(f"{x}{end}" for x in lines).encode("utf-8", "surrogateescape"))
            assert stored(Path(home)) == model.events
            assert len(printed) == (len(lines) if refused is None else refused - 1)
            assert [bool(seq) for seq in printed] == [bool(line.strip()) for line in lines[: len(printed)]]
            if refused is None:
                assert error is None
                return
            assert isinstance(error, InvalidEvent)
            assert str(error).startswith(f"line {refused}: ")
            assert str(error).endswith(f"send again from line {refused}")
            lines = lines[refused:]  # the caller leaves it out


@pytest.mark.parametrize("rest", [b" " * 3 * MIB, b'{"type": "a.b"}' + b" " * 3 * MIB, b"[" * 3 * MIB])
@pytest.mark.parametrize("after", [b"", b'\n{"type": "a.b"}\n'])
def test_a_line_that_is_too_long_is_refused_and_never_the_silent_end(tmp_path: Path, rest: bytes, after: bytes) -> None:
    with Recorder(tmp_path) as recorder:
        printed, error = sent(recorder, b'{"type": "a.b"}\n' + rest + after)

    assert printed == ["1"]
    assert isinstance(error, InvalidEvent)
    assert "line 2: longer than 1,048,576 bytes" in str(error)


def test_an_outbox_that_is_full_in_the_middle_of_a_group(tmp_path: Path) -> None:
    """Behind the large event that does not fit, a small event would."""
    with (
        patch.multiple(record, GROUP_BYTES=10 * MIB),
        Recorder(tmp_path, limits=OutboxLimits(max_bytes=MIB, keep_delivered_bytes=0)) as recorder,
    ):
        _, error = sent(recorder, numbered(200, size=30_000))
        assert isinstance(error, OutboxFull)
        before = len(stored(tmp_path))
        printed, error = sent(recorder, numbered(3) + numbered(1, size=60_000) + numbered(5))

    assert printed == [str(before + n) for n in (1, 2, 3)]
    assert len(stored(tmp_path)) == before + 3
    assert isinstance(error, OutboxFull)
    assert str(error).startswith("line 4: ")
    assert str(error).endswith("Lines 1 to 3 are stored, nothing after; send again from line 4")


class Failing(io.StringIO):
    """Standard output that fails after some lines."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def flush(self) -> None:
        if self.getvalue().count("\n") > self.after:
            raise OutputFailed(OSError(32, "Broken pipe"))


@contextmanager
def kept_output() -> Iterator[None]:
    """`discard_output` is about the process's own standard output."""
    with patch.object(record, "discard_output", lambda: None):
        yield


def test_output_that_fails_ends_it_behind_a_stored_line(tmp_path: Path) -> None:
    with kept_output(), Recorder(tmp_path) as recorder:
        _, error = sent(recorder, numbered(1000), Failing(300))

    assert isinstance(error, Unfinished)
    assert str(error) == (
        "not all numbers from line 251 on could be printed (Broken pipe): "
        "lines 1 to 500 are stored, nothing after; send again from line 501"
    )
    assert len(stored(tmp_path)) == 500


def test_output_that_fails_for_the_last_line_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with kept_output(), Recorder(tmp_path) as recorder:
        _, error = sent(recorder, numbered(1), Failing(0))

    assert error is None
    assert capsys.readouterr().err == (
        "pisync: not all numbers from line 1 on could be printed (Broken pipe), but every line is stored\n"
    )


class Interrupting(Recorder):
    """Ctrl-C while a group is being stored, once or more often."""

    times = 1

    def record_many(self, events: Any, **options: Any) -> list[int | AgentError]:
        results = super().record_many(events, **options)
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)
        return results


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_the_group_and_says_what_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], times: int
) -> None:
    out = io.StringIO()
    with Interrupting(tmp_path) as recorder:
        recorder.times = times
        with pytest.raises(KeyboardInterrupt):
            sent(recorder, numbered(1000), out)

    if times == 1:
        assert out.getvalue() == "".join(f"{seq}\n" for seq in range(1, 251))
        assert capsys.readouterr().err == (
            "pisync: stopped: lines 1 to 250 are stored, nothing after; send again from line 251\n"
        )
    else:
        assert "pisync: stopped: no line is stored, the next 250 perhaps" in capsys.readouterr().err
    assert len(stored(tmp_path)) == 250


class Answering(Recorder):
    """Raises what a service would."""

    def record_many(self, events: Any, **options: Any) -> list[int | AgentError]:
        error = StoreUnusable("the service is silent: the event may have been recorded. Look.")
        error.uncertain = True
        raise error


def test_an_answer_that_is_missing_is_no_refusal(tmp_path: Path) -> None:
    with Answering(tmp_path) as recorder:
        printed, error = sent(recorder, numbered(3))

    assert printed == []
    assert isinstance(error, StoreUnusable)
    assert "No line is stored, the next 3 perhaps; send again from line 1: events with an id" in str(error)


def test_input_that_cannot_be_read_ends_it(tmp_path: Path) -> None:
    source = os.open(tmp_path, os.O_RDONLY)
    with Recorder(tmp_path / "home") as recorder, pytest.raises(Unfinished, match=r"cannot be read .* from line 1$"):
        record.record_lines(recorder, whole_event, source=source, out=io.StringIO())
    os.close(source)


def test_an_event_that_follows_a_refused_one_is_refused(tmp_path: Path) -> None:
    """By the outbox, and only up to the next event that follows none: another caller may have sent it."""
    with Recorder(tmp_path) as recorder:
        made: list[NewEvent] = []
        for id, data, follows in (("k", 1, False), ("k", 2, True), ("m", 3, True), ("n", 4, False), ("k", 1, True)):
            (event,) = [NewEvent.from_fields({**fields_of(id, data), "follows": follows})]
            made.append(event)
        results = recorder.record_many(made)

    assert [result if isinstance(result, int) else type(result) for result in results] == [
        1, InvalidEvent, InvalidEvent, 2, 1,
    ]  # fmt: skip


def fields_of(id: str, data: int) -> dict[str, object]:
    stamp = [1_795_424_400_000, "b0070000-0000-4000-8000-000000000001", 99_001, False]
    return {"type": "a.b", "stamp": stamp, "id": id, "data": json.dumps({"n": data})}
