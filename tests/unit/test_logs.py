"""Log lines: one JSON object each, with the request's id, and never the text of another library's exception."""

import io
import json
import logging

import pytest

from pisync_receiver.errors import StoreUnusable
from pisync_receiver.logs import REQUEST, JsonFormatter, JsonLines, fields, trace_of


@pytest.fixture
def written() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("a.name")
    logger.addHandler(handler)
    return logger, stream


def line(stream: io.StringIO) -> dict[str, object]:
    text = stream.getvalue()
    assert text.count("\n") == 1
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def test_a_line_holds_what_it_says(written: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = written
    logger.warning("%d things\nhappened", 3, extra=fields(device_id="pi-1", odd=object))
    found = line(stream)
    assert found["message"] == "3 things\nhappened"
    assert (found["level"], found["logger"], found["device_id"]) == ("WARNING", "a.name", "pi-1")
    assert "request_id" not in found


def test_a_line_carries_the_id_of_its_request(written: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = written
    before = REQUEST.set(("r-1", None))
    try:
        logger.info("x")
    finally:
        REQUEST.reset(before)
    assert line(stream)["request_id"] == "r-1"


def test_an_unexpected_exceptions_text_stays_out_but_its_place_is_logged(
    written: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = written
    try:
        raise ValueError("learner s-17 watched something")
    except ValueError:
        logger.exception("failed")
    found = line(stream)
    assert found["error"] == "ValueError"
    assert "s-17" not in stream.getvalue()
    assert "test_an_unexpected_exceptions_text" in str(found["trace"])


def test_an_exception_of_our_own_is_logged_in_full(written: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = written
    try:
        raise StoreUnusable("the disk is full")
    except StoreUnusable:
        logger.exception("failed")
    assert line(stream)["error"] == "StoreUnusable: the disk is full"


class TestPendingLines:
    """Access lines are written together, before the next record, and at the end."""

    def test_a_record_is_written_after_the_lines_before_it(self) -> None:
        stream = io.StringIO()
        lines = JsonLines(stream)
        lines.pending += ['{"message":"request"}'] * 2
        assert stream.getvalue() == ""
        lines.handle(logging.LogRecord("a", logging.WARNING, "", 0, "later", (), None))
        assert [json.loads(text)["message"] for text in stream.getvalue().splitlines()] == ["request"] * 2 + ["later"]

    def test_flush_writes_each_line_once(self) -> None:
        stream = io.StringIO()
        lines = JsonLines(stream)
        lines.pending.append("{}")
        lines.flush()
        lines.flush()
        assert stream.getvalue() == "{}\n"

    def test_a_log_that_cannot_be_written_stops_no_answer(self) -> None:
        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError("no space left")

        lines = JsonLines(Full())
        lines.pending.append("{}")
        lines.flush()
        assert lines.pending == []


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("header", [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00", f"cc-{TRACE}-{SPAN}-01-more"])
def test_a_valid_traceparent_names_its_trace(header: str) -> None:
    assert trace_of(header.encode()) == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        TRACE,
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f'00-{TRACE[:-1]}"-{SPAN}-01',
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_an_invalid_traceparent_names_none(header: str) -> None:
    assert trace_of(header.encode()) is None
