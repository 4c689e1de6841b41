"""The socket's messages: what a command sends, and what it makes of the answers."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pisync_agent.errors import AgentError, InvalidEvent, NotEnrolled, OutboxFull, StoreUnusable
from pisync_agent.service import protocol
from pisync_common import unix_socket


@contextmanager
def answering(path: Path, *answers: Mapping[str, Any] | bytes) -> Iterator[list[dict[str, Any]]]:
    """Listen at `path` and give one message these answers; yield the list of messages."""
    asked: list[dict[str, Any]] = []
    listener = unix_socket.listen(path, mode=0o600)

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, peer.makefile("rb") as lines:
            asked.append(json.loads(lines.readline()))
            for answer in answers:
                peer.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        thread.join(20)
        listener.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


ASKERS: tuple[Callable[[Path], object], ...] = (
    protocol.live_status,
    protocol.reload,
    lambda path: protocol.requeue(path, 7),
    lambda path: protocol.sync(path, lambda progress: None),
)


@pytest.mark.parametrize("ask", ASKERS)
def test_without_a_service_the_client_gets_none(path: Path, ask: Callable[[Path], object]) -> None:
    assert not ask(path)
    listener = unix_socket.listen(path, mode=0o600)
    listener.close()  # the socket of a service that is gone
    assert not ask(path)


@pytest.mark.parametrize("ask", ASKERS[:1] + ASKERS[2:])
@pytest.mark.parametrize("answer", [{}, {"seq": "x"}, {"result": 7}, {"status": None}, b"", b"[]\n", b'{"seq": 1'])
def test_an_invalid_answer_is_a_broken_connection(
    path: Path, ask: Callable[[Path], object], answer: Mapping[str, Any] | bytes
) -> None:
    with answering(path, answer), pytest.raises(ConnectionResetError):
        ask(path)


@pytest.mark.parametrize("kind", [InvalidEvent, OutboxFull, StoreUnusable, NotEnrolled, protocol.BadMessage])
def test_errors_arrive_as_they_were_raised(path: Path, kind: type[AgentError]) -> None:
    with answering(path, protocol.error_answer(kind("what happened"))), pytest.raises(kind, match="what happened"):
        protocol.requeue(path, 7)


def test_an_unknown_error_code_is_store_unusable() -> None:
    assert isinstance(protocol.error_from({"code": "unheard_of", "detail": "x"}), StoreUnusable)
    assert isinstance(protocol.error_from("garbage"), StoreUnusable)


def test_requeue(path: Path) -> None:
    with answering(path, {"seq": 9}) as asked:
        assert protocol.requeue(path, 7) == 9
    assert asked == [{"do": "requeue", "seq": 7}]


def test_reload(path: Path) -> None:
    with answering(path, {"reloaded": True}) as asked:
        assert protocol.reload(path)
    assert asked == [{"do": "reload"}]


def test_sync_shows_progress_and_returns_the_result(path: Path) -> None:
    shown: list[Mapping[str, Any]] = []
    with answering(path, {"progress": {"step": "sending"}}, {"progress": {"step": "asking"}}, {"result": {"n": 1}}):
        assert protocol.sync(path, shown.append) == {"n": 1}
    assert shown == [{"step": "sending"}, {"step": "asking"}]


def test_a_service_that_ends_during_a_sync_is_a_broken_connection(path: Path) -> None:
    with answering(path, {"progress": {"step": "sending"}}), pytest.raises(ConnectionResetError):
        protocol.sync(path, lambda progress: None)


def test_a_hung_service_times_out(path: Path) -> None:
    listener = unix_socket.listen(path, mode=0o600)
    with pytest.raises(TimeoutError):
        protocol.live_status(path, timeout=0.01)
    listener.close()


def test_record_results_keep_their_places() -> None:
    results: list[int | AgentError] = [1, InvalidEvent("bad"), 3]
    first, bad, last = protocol.record_results(json.loads(json.dumps(protocol.record_answer(results))), 3)

    assert (first, last) == (1, 3)
    assert isinstance(bad, InvalidEvent)
    assert str(bad) == "bad"


@pytest.mark.parametrize("answer", [{}, {"seqs": [1]}, {"seqs": 7}, {"seqs": [1, 2, 3]}])
def test_results_of_the_wrong_number_are_a_broken_connection(answer: Mapping[str, Any]) -> None:
    with pytest.raises(ConnectionResetError):
        protocol.record_results(answer, 2)


def test_a_file_in_place_of_the_socket_means_no_service(path: Path) -> None:
    path.write_text("")
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError):
        probe.connect(str(path))
    assert protocol.live_status(path) is None
