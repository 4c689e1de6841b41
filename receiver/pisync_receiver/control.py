"""The way to the one writer: a socket beside the database that only its owner can open.

A message is a JSON object a line: `{"do": "token.create", …}`, answered by `{"result": {…}}` or
`{"error": {"code", "detail"}}`. Where nothing serves, `administer` takes the writer's lock and does the same itself.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pisync_common.errors import LockHeld, PiSyncError
from pisync_common.single_writer import WriterLock
from pisync_common.unix_socket import LineClient, listen
from pisync_receiver.config import Paths
from pisync_receiver.errors import ReceiverError

log = logging.getLogger(__name__)

Do = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Carries out one message; raises PiSyncError with a text for the one who asked."""

LINE_BYTES: Final = 64 * 1024
ANSWER_SECONDS: Final = 60.0
"""How long a command waits for its answer: longer than any group of the writer takes."""
START_SECONDS: Final = 15.0
"""How long a command waits for a receiver that has the lock and no socket yet, or is about to give both up."""


class ControlError(ReceiverError):
    """The receiver said no, or did not answer."""

    code = "control_error"

    def __init__(self, detail: str, *, code: str = "control_error") -> None:
        super().__init__(detail)
        self.answer_code = code


class NoControl:
    """Where every process may write, commands write by themselves, and nobody has to answer."""

    def bind(self) -> None: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...


class ControlServer:
    """Answers on the control socket while the receiver serves. The caller holds the writer's lock."""

    def __init__(self, path: Path, do: Do) -> None:
        self._path = path
        self._do = do
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None

    def bind(self) -> None:
        """Make the socket; whoever connects now waits until `start`. Raises ControlError."""
        try:
            self._socket = listen(self._path, mode=0o600)
        except OSError as error:
            raise ControlError(
                f"{self._path} cannot be made: {error.strerror}; commands could not reach the receiver; put the "
                "database into a folder of its own on a local file system"
            ) from error

    async def start(self) -> None:
        """Begin to answer."""
        self._server = await asyncio.start_unix_server(self._serve, sock=self._socket, limit=LINE_BYTES)

    async def close(self) -> None:
        """Stop listening; what was asked before is answered as long as the event loop runs. Harmless twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while line := await reader.readline():
                    answer = await answer_to(line, self._do)
                    writer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
                    await writer.drain()
        except (OSError, TimeoutError, ValueError):  # ValueError: a line over the limit
            log.debug("a control connection ended early")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def answer_to(line: bytes, do: Do) -> dict[str, Any]:
    """One message's answer, whatever happens."""
    try:
        return {"result": await do(_message(line))}
    except PiSyncError as error:
        return _error(getattr(error, "answer_code", error.code), str(error))
    except Exception:  # the receiver must outlive any command
        log.exception("a command failed")
        return _error("internal_error", "the receiver failed at this; its log says why")


def administer(paths: Paths, message: Mapping[str, Any], *, alone: Do) -> dict[str, Any]:
    """Have `message` done by the receiver that serves, or, where none does, by `alone` under the writer's lock.

    Raises ControlError with the receiver's own words, LockHeld if another process keeps the lock without a socket,
    and whatever `alone` raises.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        if (answer := _ask(paths.control, message)) is not None:
            return _result(answer)
        try:
            with writer_lock(paths, "a pisync-receiver command"):
                return done(alone, message)
        except LockHeld:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # its socket opens, or its lock is freed, in a moment; neither can be waited for


def done(do: Do, message: Mapping[str, Any]) -> dict[str, Any]:
    """Have `message` done by this process, and wait for it. Raises what `do` raises."""

    async def main() -> dict[str, Any]:
        return dict(await do(message))

    return asyncio.run(main())


@contextmanager
def writer_lock(paths: Paths, holder: str) -> Iterator[None]:
    """Be the one process that writes this database, inside the block; raise LockHeld that says who else is."""
    paths.database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = WriterLock(paths.lock)
    try:
        lock.acquire(wait=False)
    except LockHeld as error:
        raise LockHeld(
            f"{paths.database} is in use by {_holder(paths.lock)}; nothing was changed; stop it first, "
            "or name another database"
        ) from error
    try:
        paths.lock.write_text(f"{holder} (process {os.getpid()})\n")
        yield
    finally:
        lock.release()


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        if name := lock.read_text().strip():
            return name
    return "another process"


def _ask(path: Path, message: Mapping[str, Any]) -> dict[str, Any] | None:
    """The answer of the receiver that serves; None where none does."""
    try:
        client = LineClient(path, timeout=ANSWER_SECONDS)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except PermissionError as error:
        raise ControlError(f"{path} is not yours to open; run this as the user that runs the receiver") from error
    with client:
        try:
            client.send(message)
            return client.receive()
        except (OSError, ValueError) as error:
            raise ControlError(
                "the receiver stopped before it answered, so this may have been done or not; look with `token list`, "
                "then try again"
            ) from error


def _result(answer: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(result := answer.get("result"), dict):
        return result
    error = answer.get("error", {})
    raise ControlError(error.get("detail", "the receiver gave no answer"), code=error.get("code", "control_error"))


def _message(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(message := json.loads(line), dict):
            return message
    raise ControlError("a message is one JSON object on one line", code="bad_message")


def _error(code: str, detail: str) -> dict[str, Any]:
    return {"error": {"code": code, "detail": detail}}
