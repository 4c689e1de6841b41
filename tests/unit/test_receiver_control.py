"""The control socket: what it answers, who may open it, and what a command does where nothing serves."""

import asyncio
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pisync_common.errors import LockHeld, PiSyncError
from pisync_common.unix_socket import LineClient
from pisync_receiver import control
from pisync_receiver.config import Paths
from pisync_receiver.control import ControlError, ControlServer, administer, answer_to, writer_lock


class Refusal(PiSyncError):
    code = "refusal"


async def echo(message: Mapping[str, Any]) -> Mapping[str, Any]:
    match message["do"]:
        case "refuse":
            raise Refusal("not like this")
        case "break":
            raise RuntimeError("a secret")
        case _:
            return {"asked": message["do"]}


async def never(message: Mapping[str, Any]) -> Mapping[str, Any]:
    raise AssertionError(f"done twice, or by the wrong one: {message}")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(database=tmp_path / "receiver.db")


@contextmanager
def listening(paths: Paths) -> Iterator[None]:
    """A control server on an event loop of its own, for the length of the block."""
    ready = threading.Event()
    stops: list[Callable[[], object]] = []

    async def run() -> None:
        stop = asyncio.Event()
        server = ControlServer(paths.control, echo)
        server.bind()
        await server.start()
        loop = asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        ready.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(30)
    try:
        yield
    finally:
        stops[0]()
        thread.join()


@contextmanager
def serving(paths: Paths) -> Iterator[None]:
    """A control server that holds the writer's lock, as a receiver does."""
    with writer_lock(paths, "a test"), listening(paths):
        yield


def answered(line: bytes) -> dict[str, Any]:
    return asyncio.run(answer_to(line, echo))


class TestAnswers:
    def test_a_result(self) -> None:
        assert answered(b'{"do":"x"}\n') == {"result": {"asked": "x"}}

    def test_a_refusal_keeps_its_code_and_text(self) -> None:
        assert answered(b'{"do":"refuse"}\n') == {"error": {"code": "refusal", "detail": "not like this"}}

    def test_a_failure_nobody_expected_says_nothing_of_itself(self) -> None:
        answer = answered(b'{"do":"break"}\n')
        assert answer["error"]["code"] == "internal_error"
        assert "secret" not in str(answer)

    @pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{\n", b"\xff\n", b"[" * 50_000 + b"\n", b"5\n"])
    def test_what_is_no_message(self, line: bytes) -> None:
        assert answered(line)["error"]["code"] == "bad_message"


class TestSocket:
    def test_only_the_owner_may_open_it(self, paths: Paths) -> None:
        with serving(paths):
            assert stat.S_IMODE(paths.control.stat().st_mode) == 0o600

    def test_it_is_gone_after_the_end(self, paths: Paths) -> None:
        with serving(paths):
            assert paths.control.exists()
        assert not paths.control.exists()

    def test_several_messages_on_one_connection(self, paths: Paths) -> None:
        with serving(paths), LineClient(paths.control, timeout=30) as client:
            for name in ("one", "refuse", "two"):
                client.send({"do": name})
            assert [client.receive() for _ in range(3)] == [
                {"result": {"asked": "one"}},
                {"error": {"code": "refusal", "detail": "not like this"}},
                {"result": {"asked": "two"}},
            ]

    def test_an_endless_line_ends_that_connection_alone(self, paths: Paths) -> None:
        with serving(paths):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.settimeout(30)
                rude.connect(str(paths.control))
                with pytest.raises(OSError, match=r"[Pp]ipe|reset"):
                    rude.sendall(b"x" * control.LINE_BYTES * 100)
            assert administer(paths, {"do": "x"}, alone=never) == {"asked": "x"}

    def test_a_folder_that_takes_no_socket_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ControlError, match=r"nowhere/x\.control cannot be made: No such file"):
            ControlServer(tmp_path / "nowhere" / "x.control", echo).bind()


class TestAdminister:
    def test_the_receiver_that_serves_does_it(self, paths: Paths) -> None:
        with serving(paths):
            assert administer(paths, {"do": "x"}, alone=never) == {"asked": "x"}

    def test_its_refusal_arrives_with_its_code(self, paths: Paths) -> None:
        with serving(paths), pytest.raises(ControlError, match="not like this") as caught:
            administer(paths, {"do": "refuse"}, alone=never)
        assert caught.value.answer_code == "refusal"

    def test_where_nothing_serves_it_is_done_under_the_lock(self, paths: Paths) -> None:
        async def alone(message: Mapping[str, Any]) -> Mapping[str, Any]:
            with pytest.raises(LockHeld), writer_lock(paths, "somebody else"):
                pass
            return await echo(message)

        assert administer(paths, {"do": "x"}, alone=alone) == {"asked": "x"}
        with writer_lock(paths, "the next one"):
            pass

    def test_a_socket_left_by_a_killed_receiver_is_no_receiver(self, paths: Paths) -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(paths.control))
        assert administer(paths, {"do": "x"}, alone=echo) == {"asked": "x"}

    def test_a_receiver_that_is_about_to_listen_is_waited_for(self, paths: Paths) -> None:
        answers: list[dict[str, Any]] = []
        with writer_lock(paths, "a receiver that starts"):
            asking = threading.Thread(target=lambda: answers.append(administer(paths, {"do": "x"}, alone=never)))
            asking.start()
            with listening(paths):
                asking.join(60)
        assert answers == [{"asked": "x"}]

    def test_a_lock_that_stays_is_named(self, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "START_SECONDS", 0.0)
        with (
            writer_lock(paths, "pisync-receiver migrate"),
            pytest.raises(LockHeld, match=r"in use by pisync-receiver migrate \(process \d+\); nothing was changed"),
        ):
            administer(paths, {"do": "x"}, alone=never)

    def test_an_answer_that_never_came_is_called_unknown(self, paths: Paths) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(paths.control))
        listener.listen(1)

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(10)
            connection.close()

        other = threading.Thread(target=hang_up)
        other.start()
        with listener, pytest.raises(ControlError, match="done or not"):
            administer(paths, {"do": "x"}, alone=never)
        other.join()
