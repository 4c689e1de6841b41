"""The service's log."""

import io
import logging
import sys

import pytest

from pisync_agent import logs
from pisync_agent.errors import OutboxFull


def logged(formatter: logging.Formatter, *, error: BaseException | None = None) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    handler.handle(logging.LogRecord("x", logging.WARNING, "", 0, "first\nsecond", (), info))
    return stream.getvalue()


def test_each_line_has_a_level_for_the_journal() -> None:
    assert logged(logs.JournalFormatter()) == "<4>first\n<4>second\n"


def test_without_a_journal_a_line_has_its_time() -> None:
    assert logged(logs.PlainFormatter()).endswith("Z WARNING first\nsecond\n")


def test_the_text_of_an_unexpected_error_is_not_logged() -> None:
    foreign = logged(logs.JournalFormatter(), error=KeyError("learner s-17"))
    assert "KeyError" in foreign
    assert "s-17" not in foreign
    assert "the disk is full" in logged(logs.JournalFormatter(), error=OutboxFull("the disk is full"))


def test_lines_are_for_the_journal_where_it_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    stream = io.StringIO()
    logs.configure("warning", stream=stream, environ={"JOURNAL_STREAM": "8:1"})
    logging.getLogger("pisync_agent.x").warning("careful")
    logging.getLogger("pisync_agent.x").info("chat")

    assert stream.getvalue() == "<4>careful\n"
