"""A bad link between a device and its receiver, as a TCP proxy whose faults can be changed while it runs.

with FaultProxy("127.0.0.1", 8080) as proxy:
    ...                                  # the device uses proxy.url
    proxy.latency = 0.3                  # seconds, each way
    proxy.rate = 20_000                  # bytes a second, each way
    proxy.cut_up_after = 5_000           # each connection breaks after this many bytes up
    proxy.drop_answers = 1               # the next answer is lost, after the receiver gave it
    proxy.bad_gateway = {"/api/events"}  # a gateway answers 502 to POSTs there; the rest passes
    proxy.heal()
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Final, Self

_READ: Final = 16 * 1024
_HEAD_LIMIT: Final = 256 * 1024
_DEADLINE_S: Final = 30.0


class FaultProxy:
    """Forwards connections to `host`:`port`, with the faults that its attributes say at the moment.

    `start` and `stop`, or a `with` block. All attributes may be set from any thread at any time.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.bytes_up = 0
        """Bytes that reached the receiver's side so far."""
        self.bytes_down = 0
        self.connections = 0
        """Connections accepted so far."""
        self.requests: list[str] = []
        """`POST /api/events` and so on, in the order they came; plain HTTP only."""
        self.answers_dropped = 0
        self._listen = ("127.0.0.1", 0)
        self._open: set[_Connection] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._refuse = False
        self.heal()

    def heal(self) -> None:
        """A good link again, for connections that are open too (cut connections stay cut, held connections go on)."""
        self.latency = 0.0
        """Seconds that each piece takes, each way."""
        self.rate: float | None = None
        """Bytes a second, each way of each connection; None for no limit."""
        self.cut_up_after: int | None = None
        """Break a connection after this many bytes towards the receiver."""
        self.cut_down_after: int | None = None
        """Break a connection after this many bytes back."""
        self.drop_answers = 0
        """Lose this many answers: the receiver gives them, the connection breaks before the device has any of it."""
        self.drop_answers_to = ""
        """Lose only answers to requests whose path begins so."""
        self.blackhole = False
        """Connections are accepted, and nothing passes either way."""
        self.bad_gateway: Iterable[str] = ()
        """POSTs to these paths are answered 502 by the proxy itself; the receiver never sees them."""
        self.refuse = False

    @property
    def refuse(self) -> bool:
        """Nothing listens: connections are refused, and those that are open break."""
        return self._refuse

    @refuse.setter
    def refuse(self, refuse: bool) -> None:
        changed, self._refuse = refuse != self._refuse, refuse
        if changed and self._thread is not None:
            self._call(self._close_all() if refuse else self._listen_again())

    @property
    def port(self) -> int:
        return self._listen[1]

    @property
    def url(self) -> str:
        return f"http://{self._listen[0]}:{self.port}"

    def cut(self) -> None:
        """Break every open connection now."""
        self._call(self._cut())

    def change(self, **faults: object) -> None:
        """Set several faults at once."""
        for name, value in faults.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    def start(self) -> Self:
        """Listen. Raises OSError if the port is taken."""
        if not self.port:
            with socket.create_server(self._listen) as free:
                self._listen = (self._listen[0], free.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fault-proxy", daemon=True)
        self._thread.start()
        try:
            if not self._refuse:
                self._call(self._listen_again())
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Close everything; harmless when it is stopped."""
        if self._thread is None or self._loop is None:
            return
        self._call(self._close_all())
        self._call(_end_all_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_DEADLINE_S)
        self._loop.close()
        self._thread = self._loop = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # In the proxy's own thread

    def _serve(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None, "the proxy is not running"
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_DEADLINE_S)

    async def _listen_again(self) -> None:
        host, port = self._listen
        self._server = await asyncio.start_server(self._accept, host, port, reuse_address=True)

    async def _close_all(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await _turns()  # a connection that is just being accepted joins the others
        await self._cut()
        await _turns()

    async def _cut(self) -> None:
        broken = list(self._open)
        for connection in broken:
            connection.task.cancel()
        await asyncio.gather(*(connection.task for connection in broken), return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(self, reader, writer, task)
        self.connections += 1
        self._open.add(connection)
        try:
            await connection.run()
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass  # broken by a fault, or by either side: what this is for
        finally:
            self._open.discard(connection)
            connection.abort()


class _Cut(ConnectionError):
    """A fault breaks the connection."""


class _Connection:
    """One connection from a device, and the one it is carried on by."""

    def __init__(
        self,
        proxy: FaultProxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        task: "asyncio.Task[None]",
    ) -> None:
        self.task = task
        self._proxy = proxy
        self._device = (reader, writer)
        self._receiver: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._up = 0
        self._down = 0
        self._path = ""
        self._answering = asyncio.Lock()

    async def run(self) -> None:
        await self._while_black()
        self._receiver = await asyncio.open_connection(*self._proxy.target)
        ways = [asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._answers())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def abort(self) -> None:
        """Break it: the other side sees a reset, or an end, in the middle of whatever it was."""
        for pair in (self._device, self._receiver):
            if pair is not None:
                with contextlib.suppress(RuntimeError):
                    pair[1].transport.abort()

    async def _requests(self) -> None:
        """Towards the receiver, request by request; anything but plain HTTP as it comes."""
        reader = self._device[0]
        while head := await self._head(reader):
            method, path, length = _request_line(head)
            if length is None:
                await self._pass_up(head)
                while data := await reader.read(_READ):
                    await self._pass_up(data)
                return
            self._path = path
            self._proxy.requests.append(f"{method} {path}")
            if method == "POST" and path in self._proxy.bad_gateway:
                await reader.readexactly(length)
                await self._pass_down(_BAD_GATEWAY)
                continue
            await self._pass_up(head)
            await self._body(reader, length)

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        """A request's line and headers; what has come so far where that is no such thing."""
        head = bytearray()
        while b"\r\n\r\n" not in head and len(head) < _HEAD_LIMIT:
            if head and (not head[:1].isalpha() or 0 in head):  # AMQP begins with letters, too
                break
            byte = await reader.read(1)
            if not byte:
                break
            head += byte
        return bytes(head)

    async def _body(self, reader: asyncio.StreamReader, length: int) -> None:
        while length:
            data = await reader.read(min(length, _READ))
            if not data:
                raise _Cut
            length -= len(data)
            await self._pass_up(data)

    async def _answers(self) -> None:
        assert self._receiver is not None
        while data := await self._receiver[0].read(_READ):
            if self._proxy.drop_answers > 0 and self._path.startswith(self._proxy.drop_answers_to):
                self._proxy.drop_answers -= 1
                self._proxy.answers_dropped += 1
                raise _Cut
            await self._pass_down(data)

    async def _pass_up(self, data: bytes) -> None:
        assert self._receiver is not None
        allowed = self._allowed(data, self._proxy.cut_up_after, self._up)
        await self._pass(allowed, self._receiver[1])
        self._up += len(allowed)
        self._proxy.bytes_up += len(allowed)
        if len(allowed) < len(data):
            raise _Cut

    async def _pass_down(self, data: bytes) -> None:
        async with self._answering:
            allowed = self._allowed(data, self._proxy.cut_down_after, self._down)
            await self._pass(allowed, self._device[1])
            self._down += len(allowed)
            self._proxy.bytes_down += len(allowed)
            if len(allowed) < len(data):
                raise _Cut

    def _allowed(self, data: bytes, most: int | None, so_far: int) -> bytes:
        return data if most is None else data[: max(0, most - so_far)]

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        await self._while_black()
        if self._proxy.latency > 0:
            await asyncio.sleep(self._proxy.latency)
        while data:
            piece = data[: self._piece()]
            data = data[len(piece) :]
            writer.write(piece)
            await writer.drain()
            if self._proxy.rate:
                await asyncio.sleep(len(piece) / self._proxy.rate)

    def _piece(self) -> int:
        """So little at once that a slow link is slow throughout."""
        return _READ if self._proxy.rate is None else max(1, int(self._proxy.rate / 20))

    async def _while_black(self) -> None:
        while self._proxy.blackhole:  # noqa: ASYNC110 - it is changed from other threads
            await asyncio.sleep(0.02)


async def _end_all_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await _turns()


async def _turns() -> None:
    """Let the loop finish what it has begun: accepting a connection takes some turns, and so does closing it."""
    for _ in range(10):
        await asyncio.sleep(0)


_BAD_GATEWAY: Final = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 33\r\n\r\n"
    b"<html><h1>Bad Gateway</h1></html>"
)


def _request_line(head: bytes) -> tuple[str, str, int | None]:
    """Method, path and length of the body; no length where this is no request, or one whose body ends otherwise."""
    line, *headers = head.decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not head.endswith(b"\r\n\r\n"):
        return "", "", None
    fields = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in headers)}
    if "transfer-encoding" in fields or not fields.get("content-length", "0").isdecimal():
        return "", "", None
    return words[0], words[1].partition("?")[0], int(fields.get("content-length", "0"))
