"""`serve`: from the writer's lock to the last answer.

The lock, the socket, the store, the app around them, uvicorn; on SIGTERM the same backwards: no new connections, the
requests under way answered, the intake drained, the store closed, and the signal raised again for systemd to see.
"""

import asyncio
import gc
import logging
import math
import os
import random
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, TextIO

import uvicorn

from pisync_common import __version__
from pisync_common.settings import DEFAULT, Settings
from pisync_common.times import now_ms
from pisync_receiver import config, databases, logs
from pisync_receiver.administration import Administration
from pisync_receiver.app import AppSettings, create_app
from pisync_receiver.auth import Tokens, TokenSource
from pisync_receiver.caching import Cache, OwnCache, telling
from pisync_receiver.control import ControlServer, Do, NoControl
from pisync_receiver.counting import own_registry, worker_ended
from pisync_receiver.directory import Directory
from pisync_receiver.errors import ReceiverError
from pisync_receiver.intake import Intake, IntakeLimits
from pisync_receiver.limits import Limits, each_device
from pisync_receiver.metrics import Metrics
from pisync_receiver.readiness import Readiness
from pisync_receiver.sharing import Sharing
from pisync_receiver.sharing.address import RedisUrl
from pisync_receiver.sharing.link import check_installed
from pisync_receiver.store import Store
from pisync_receiver.store.address import url_of
from pisync_receiver.workers import Workers, inherited_socket

log = logging.getLogger(__name__)

_BACKLOG: Final = 2048
_STOP_MARGIN_S: Final = 5.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class CannotListen(ReceiverError):
    """The address cannot be had."""

    code = "cannot_listen"


def serve(settings: Settings, *, out: TextIO, err: TextIO) -> None:
    """Serve until a signal comes. Raises SettingError, LockHeld, StoreUnusable or CannotListen before anything is
    answered. Prints `listening on URL` to `out` once connections are accepted."""
    config.check_serving(settings)
    if settings[config.REDIS] is not None:
        check_installed()
    _configure_logs(settings[config.LOG_LEVEL], err)
    place = settings[config.DATABASE]
    with signals_raised_again() as stopping, databases.writing(place, "pisync-receiver serve"):
        inherited = inherited_socket(os.environ)
        listener = listening_socket(settings) if inherited is None else inherited
        try:
            first_start = not databases.exists(place)
            with closing(databases.open_store(place, create=True)) as store:
                if first_start:
                    print(_first_steps(settings), file=err, flush=True)
                if inherited is not None or settings[config.WORKERS] == 1:
                    _run(settings, store, listener, stopping, out)
                    return
            _run_workers(settings, listener, stopping, out)
        finally:
            listener.close()


def listening_socket(settings: Settings) -> socket.socket:
    """A socket bound to the settings' address, not yet listening. Raises CannotListen, or SettingError where a name
    turns out to mean an open door."""
    host, port = settings[config.HOST], settings[config.PORT]
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host} port {port}: {error.strerror or error}; nothing was changed; "
            "stop what uses it, or choose another with --host and --port"
        ) from error
    if not settings[config.AUTH] and not config.is_loopback(listener.getsockname()[0]):
        listener.close()
        raise CannotListen(f"{host} is not a loopback address here, so --auth off is refused; use 127.0.0.1")
    return listener


class Server(uvicorn.Server):
    """uvicorn's server, which says when it accepts connections, and stops for a signal that came before it."""

    def __init__(
        self,
        settings: uvicorn.Config,
        *,
        stopping: list[int],
        started: Callable[[], None],
        readiness: Readiness,
        drain_s: float,
    ) -> None:
        super().__init__(settings)
        self._readiness = readiness
        self._drain_s = drain_s
        self._stopping = stopping
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.should_exit = self.should_exit or bool(self._stopping)
        self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1")
        self._readiness.drain()
        if self._drain_s and not self.force_exit:
            log.info("draining: not ready any more, and still answering")
            await asyncio.sleep(self._drain_s)  # how soon the gateway looks is its own affair; nothing tells
        log.info("stopping: no new connections, requests under way are answered")
        await super().shutdown(sockets)


@contextmanager
def signals_raised_again() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in the list inside the block; at its end let the first one end the process."""
    caught: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        caught.append(number)

    before: dict[int, Any] = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.signal(caught[0], signal.SIG_DFL)
        signal.raise_signal(caught[0])


def _run_workers(settings: Settings, listener: socket.socket, stopping: list[int], out: TextIO) -> None:
    workers = Workers(
        listener,
        settings[config.WORKERS],
        [sys.executable, "-m", "pisync_receiver", *sys.argv[1:]],
        stopping=stopping,
        stop_s=settings[config.DRAIN_TIMEOUT] + settings[config.STOP_TIMEOUT] + _STOP_MARGIN_S,
        started=lambda: _tell_started(settings, listener, out),
        ended=worker_ended,
    )
    workers.run()
    notify("STOPPING=1")
    log.info("stopped")


def _tell_started(settings: Settings, listener: socket.socket, out: TextIO) -> None:
    address, database = _url(listener), str(settings[config.DATABASE])
    log.info("started", extra=logs.fields(address=address, database=database, version=__version__))
    print(f"listening on {address}", file=out, flush=True)
    notify("READY=1")


def _run(settings: Settings, store: Store, listener: socket.socket, stopping: list[int], out: TextIO) -> None:
    def started() -> None:
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be looked at again
        _tell_started(settings, listener, out)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, store, listener, stopping, started))
    log.info("stopped")


async def _serve(
    settings: Settings, store: Store, listener: socket.socket, stopping: list[int], started: Callable[[], None]
) -> None:
    """Make the app and its parts, and serve until a signal comes."""
    metrics = Metrics(own_registry())
    redis = settings[config.REDIS]
    limits = each_device(settings[config.DEVICE_RATE], clock=time.monotonic, shared=redis is not None)
    sharing = None if redis is None else _sharing(settings, redis, limits, metrics)
    cache = _cache(settings, sharing)
    intake = Intake(
        store,
        limits=_intake_limits(settings),
        clock=time.monotonic,
        random=random.random,
        watcher=metrics,
        committed=telling(cache),
    )
    tokens = _tokens(settings, store, sharing)
    administration = Administration(store, tokens=tokens, submit=intake.submit, now_ms=now_ms)
    control = _control(settings, administration.do)
    readiness = Readiness(intake)

    async def start() -> None:
        await control.start()
        if sharing is not None:
            await sharing.start()

    app = create_app(
        readiness=readiness,
        cache=cache,
        limits=limits,
        store=store,
        intake=intake,
        tokens=tokens,
        metrics=metrics,
        now_ms=now_ms,
        new_request_id=new_request_id,
        settings=AppSettings(
            auth=settings[config.AUTH],
            trusted_proxies=settings[config.TRUSTED_PROXIES],
        ),
        on_start=start,
        on_stop=control.close,
    )
    server = Server(
        _uvicorn(app, settings),
        stopping=stopping,
        started=started,
        readiness=readiness,
        drain_s=settings[config.DRAIN_TIMEOUT],
    )
    control.bind()
    try:
        await server.serve([listener])
    finally:
        await control.close()  # a second Ctrl-C skips the app's own end
    await intake.close()
    if sharing is not None:
        await sharing.close()


def _intake_limits(settings: Settings) -> IntakeLimits:
    return IntakeLimits(
        waiting=settings[config.MAX_WAITING],
        waiting_bytes=settings[config.MAX_WAITING_BYTES],
        waiting_s=settings[config.MAX_WAIT],
    )


def _tokens(settings: Settings, store: Store, sharing: Sharing | None) -> TokenSource:
    """Where one process writes, all tokens in memory; else looked up, as any other may make or revoke one."""
    if isinstance(settings[config.DATABASE], Path):
        return Tokens(store.all_tokens())
    elsewhere = None if sharing is None else sharing.tokens
    return Directory(store.tokens_by_hash, clock=time.monotonic, elsewhere=elsewhere)


def _cache(settings: Settings, sharing: Sharing | None) -> Cache | None:
    """Where one process writes, it knows when an answer no longer holds; else Redis does, or nobody."""
    if isinstance(settings[config.DATABASE], Path):
        return OwnCache()
    return None if sharing is None else sharing.cache


def _sharing(settings: Settings, redis: RedisUrl, limits: Limits | None, metrics: Metrics) -> Sharing:
    return Sharing(
        redis,
        space=databases.identity(settings[config.DATABASE]),
        limits=limits,
        clock=time.monotonic,
        noticed=metrics.redis_answers(),
    )


def _control(settings: Settings, do: Do) -> ControlServer | NoControl:
    """The way for commands to this database's one writer."""
    place = settings[config.DATABASE]
    return ControlServer(config.Paths(database=place).control, do) if isinstance(place, Path) else NoControl()


def _configure_logs(level: str, err: TextIO) -> None:
    logs.configure(level, err)
    if level != "debug":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its small talk says less than ours


def new_request_id() -> str:
    return secrets.token_hex(8)


def notify(state: str) -> None:
    """Tell systemd, where it listens."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.sendall(state.encode())


def _uvicorn(app: Any, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_protocol(settings[config.MAX_CONNECTIONS]),
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=math.ceil(settings[config.IDLE_TIMEOUT]),
        timeout_graceful_shutdown=math.ceil(settings[config.STOP_TIMEOUT]),
    )


def _protocol(max_connections: int) -> Any:
    try:
        from pisync_receiver.connections import bounded
    except ImportError:
        log.warning("httptools is not installed: h11 serves, slower, and without limits on connections and heads")
        return "h11"
    return bounded(max_connections)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        log.info("uvloop is not installed: asyncio's own event loop serves, a little slower")
        return None
    return uvloop.new_event_loop


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def _first_steps(settings: Settings) -> str:
    program = f"{sys.executable} -m pisync_receiver" if sys.argv[0].endswith("__main__.py") else "pisync-receiver"
    url = shlex.quote(url_of(settings[config.DATABASE]))
    flag = "" if settings.source(config.DATABASE) == DEFAULT else f" --database-url {url}"
    return (
        "A new database. While this serves, make what callers need:\n"
        f"  an admin's token:       {program} token create --role admin{flag}\n"
        f"  a code for a device:    {program} enrollment create{flag}"
    )
