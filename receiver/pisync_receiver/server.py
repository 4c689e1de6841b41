"""`serve`: from the writer's lock to the last answer.

The lock, the sockets, the store, the receiver around them, uvicorn; on SIGTERM the same backwards: no new connections,
the requests under way answered, the intake drained, the store closed, and the signal raised again for systemd to see.
"""

import asyncio
import gc
import hashlib
import logging
import math
import os
import resource
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, TextIO

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from pisync_common import __version__, unix_socket
from pisync_common.errors import SettingError
from pisync_common.settings import DEFAULT, Settings
from pisync_common.streams import OutputFailed, discard_output
from pisync_common.systemd import notify
from pisync_receiver import config, logs
from pisync_receiver.alerts.alerts import Alerts
from pisync_receiver.app import AppSettings, Receiver
from pisync_receiver.errors import CannotListen
from pisync_receiver.http.oidc import oidc_settings
from pisync_receiver.http.protocol import TOO_MANY, bounded
from pisync_receiver.intake import IntakeLimits
from pisync_receiver.store import Store, opening
from pisync_receiver.store.address import Address, PostgresUrl, url_of

log = logging.getLogger(__name__)

_BACKLOG: Final = 2048
_OWN_FILES: Final = 64
"""Descriptors beside connections: the database's, a Redis's, listeners, the log."""
_FEWEST_CONNECTIONS: Final = 16
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def serve(settings: Settings, *, out: TextIO, err: TextIO) -> None:
    """Serve until a signal comes. Print `listening on URL` to `out` once connections are accepted.

    Raises SettingError, LockHeld, StoreUnusable, MissingExtra or CannotListen before anything is answered.
    """
    config.check_serving(settings)
    lines = logs.configure(settings[config.LOG_LEVEL], err)
    access_log = lines if logging.getLogger().isEnabledFor(logging.INFO) else None
    connections = connections_within_limit(settings[config.MAX_CONNECTIONS])
    with signals_raised_again() as stopping, opening.writing(settings[config.DATABASE], "pisync-receiver serve"):
        try:
            with (
                closing(listening_socket(settings)) as listener,
                owner_socket(config.socket_path(settings)) as owner,
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                runner.run(_serve(settings, connections, listener, owner, stopping, access_log, out, err))
            log.info("stopped")
        finally:
            lines.flush()


async def _serve(
    settings: Settings,
    connections: int,
    listener: socket.socket,
    owner: socket.socket | None,
    stopping: list[int],
    access_log: logs.JsonLines | None,
    out: TextIO,
    err: TextIO,
) -> None:
    """Put the receiver together, and serve until a signal comes."""
    database = settings[config.DATABASE]
    first_start = not opening.exists(database)
    store = await opening.open_store(database, create=True)
    try:
        receiver = Receiver.create(store, app_settings(settings), access_log=access_log)
        if first_start:
            print(_first_steps(settings), file=err, flush=True)
        announce = partial(_announce, settings, listener, out)
        server = Server(receiver, settings, connections, owner, stopping, started=announce)
        async with receiver.running(), alerting(store, settings, receiver.services.metrics.registry):
            # In a task of its own: uvicorn wakes up ten times a second, and this function need not.
            await asyncio.create_task(server.serve([listener]))
    finally:
        await store.aclose()


@asynccontextmanager
async def alerting(store: Store, settings: Settings, registry: CollectorRegistry) -> AsyncIterator[None]:
    """Watch the devices and send notices inside the block. Raises MissingExtra, SettingError."""
    alerts = Alerts.create(store, settings, registry)
    running = asyncio.create_task(alerts.run())
    try:
        yield
    finally:
        await alerts.stop()
        await running


def app_settings(settings: Settings) -> AppSettings:
    """Return what the settings say about the app."""
    return AppSettings(
        auth=settings[config.AUTH],
        intake=IntakeLimits(
            waiting=settings[config.MAX_WAITING],
            waiting_bytes=settings[config.MAX_WAITING_BYTES],
            waiting_s=settings[config.MAX_WAIT],
        ),
        device_rate=settings[config.DEVICE_RATE],
        cache_ttl_s=settings[config.CACHE_TTL],
        redis=settings[config.REDIS],
        redis_space=_digest(settings[config.DATABASE]),
        trusted_proxies=settings[config.TRUSTED_PROXIES],
        announce_url=settings[config.ANNOUNCE_URL],
        erasures_file=config.erasures_path(settings),
        public_url=settings[config.PUBLIC_URL],
        oidc=oidc_settings(settings, settings[config.PUBLIC_URL]),
        silent_after_s=settings[config.SILENT_AFTER],
    )


def _digest(database: Address) -> str:
    """Tell databases apart without naming them: receivers of the same database are given the same address."""
    text = database.conninfo if isinstance(database, PostgresUrl) else str(database)
    return hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()


def connections_within_limit(wanted: int) -> int:
    """Return how many connections the limit of open files has room for, at most `wanted`; raise the soft limit first.

    Without room, accepting fails, and so does everything else that opens a file. Raises SettingError if there is hardly
    room for any.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + TOO_MANY + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    room = soft - TOO_MANY - _OWN_FILES
    if room < _FEWEST_CONNECTIONS:
        raise SettingError(
            f"the limit of open files is {soft:,}, which leaves no room for connections; nothing was changed; "
            f"raise it (LimitNOFILE= or ulimit -n) to {needed:,} for --max-connections {wanted}"
        )
    log.warning(
        "the limit of open files is %s: %s connections are served instead of %s; raise it (LimitNOFILE= or ulimit -n)",
        *(soft, room, wanted),
    )
    return room


def listening_socket(settings: Settings) -> socket.socket:
    """Return a socket bound to the settings' address, not yet listening. Raises CannotListen."""
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
            f"cannot bind to {host} port {port}: {error.strerror or error}; nothing was changed; "
            "stop what uses it, or choose another with --host and --port"
        ) from error
    if not settings[config.AUTH] and not config.is_loopback(listener.getsockname()[0]):
        listener.close()
        raise CannotListen(f"{host} resolves to a non-loopback address, so --auth off is refused; use 127.0.0.1")
    return listener


@contextmanager
def owner_socket(path: Path | None) -> Iterator[socket.socket | None]:
    """Make the Unix socket that the receiver's owner reaches it through; remove it at the end. Raises CannotListen."""
    if path is None:
        yield None
        return
    try:
        owner = unix_socket.listen(path, mode=0o600)
    except OSError as error:
        raise CannotListen(
            f"cannot bind to {path}: {error.strerror or error}; nothing was changed; commands reach the receiver "
            "through this socket: choose a folder of the receiver's own on a local file system with --socket"
        ) from error
    with owner:
        try:
            yield owner
        finally:
            path.unlink(missing_ok=True)


class Server(uvicorn.Server):
    """uvicorn's server: also serves the owner's socket, announces its start, drains before it stops, and stops for a
    signal that came before it started."""

    def __init__(
        self,
        receiver: Receiver,
        settings: Settings,
        connections: int,
        owner: socket.socket | None,
        stopping: list[int],
        *,
        started: Callable[[], None],
    ) -> None:
        super().__init__(_uvicorn(receiver.app, receiver, settings, connections))
        # Callers too many do not keep the owner out.
        self._owner_config = _uvicorn(receiver.local, receiver, settings, sys.maxsize)
        self._owner = owner
        self._receiver = receiver
        self._drain_s: float = settings[config.DRAIN_TIMEOUT]
        self._stopping = stopping
        self._announce = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._owner is not None:
            self._owner_config.load()
            protocol: Any = self._owner_config.http_protocol_class
            connect = partial(protocol, config=self._owner_config, server_state=self.server_state, app_state={})
            loop = asyncio.get_running_loop()
            self.servers.append(await loop.create_unix_server(connect, sock=self._owner))
        self.should_exit = self.should_exit or bool(self._stopping)
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be looked at again
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1")
        self._receiver.drain()
        if self._drain_s and not self.force_exit:
            log.info("draining: not ready any more, and still answering")
            await asyncio.sleep(self._drain_s)  # the gateway finds out when it next asks /readyz
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


def _announce(settings: Settings, listener: socket.socket, out: TextIO) -> None:
    address, database = _url(listener), str(settings[config.DATABASE])
    log.info("started", extra=logs.fields(address=address, database=database, version=__version__))
    try:
        print(f"listening on {address}", file=out, flush=True)
    except OutputFailed:  # the log has it too
        discard_output()
    notify("READY=1")


def _uvicorn(app: ASGIApp, receiver: Receiver, settings: Settings, connections: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded(connections, receiver.busy),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=math.ceil(settings[config.IDLE_TIMEOUT]),
        timeout_graceful_shutdown=math.ceil(settings[config.STOP_TIMEOUT]),
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def _first_steps(settings: Settings) -> str:
    program = f"{sys.executable} -m pisync_receiver" if sys.argv[0].endswith("__main__.py") else "pisync-receiver"
    url = shlex.quote(url_of(settings[config.DATABASE]))
    flag = "" if settings.source(config.DATABASE) == DEFAULT else f" --database-url {url}"
    return (
        "A new database. While this serves, create what callers need:\n"
        f"  an admin's token:       {program} token create --scope admin{flag}\n"
        f"  a code for a device:    {program} enrollment create{flag}\n"
        "Then open the receiver's address in a browser, and sign in with the token."
    )
