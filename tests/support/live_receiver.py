"""The receiver's app behind a real uvicorn in a thread, on a store of its own, with a token of each kind.

with live_receiver(tmp_path) as live:
    live.client("admin").get("/api/devices")
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn
import uvloop

from pisync_receiver.app import AppSettings, Receiver
from pisync_receiver.domain.rows import Token
from pisync_receiver.domain.submissions import Outcome, Scope, Submission, TokenCreate, TokenRevoke
from pisync_receiver.http.auth import new_token, token_hash
from pisync_receiver.http.routing import Route
from pisync_receiver.logs import JsonLines
from pisync_receiver.store import Store
from pisync_receiver.store.opening import open_store
from tests.support.processes import DEADLINE_SECONDS

T = TypeVar("T")

NOW_MS = 1_795_428_000_000  # 2026-11-23T10:00:00Z
DEVICE, OTHER = "pibook-0042", "pibook-0043"
SITE = "Nakuru"

KINDS: Mapping[str, tuple[Scope, str | None, tuple[str, ...] | None]] = {
    "device": ("device", DEVICE, None),
    "other device": ("device", OTHER, None),
    "revoked": ("device", DEVICE, None),
    "admin": ("admin", None, None),
    "viewer": ("viewer", None, None),
    "metrics": ("metrics", None, None),
    "site admin": ("admin", None, (SITE,)),
    "site viewer": ("viewer", None, (SITE,)),
}
UNCACHED = AppSettings(cache_ttl_s=0)
_TLS = ssl.SSLContext(
    ssl.PROTOCOL_TLS_CLIENT
)  # nothing here uses TLS, and a context of its own costs each client 30 ms


@dataclass(frozen=True, kw_only=True)
class Live:
    """A running receiver. `secrets` has a token for each of KINDS and an unknown one, "wrong"."""

    url: str
    receiver: Receiver
    store: Store
    secrets: Mapping[str, str]
    clients: ExitStack
    loop: asyncio.AbstractEventLoop

    def client(self, kind: str | None, **headers: str) -> httpx.Client:
        """A client that sends the token of `kind`; None sends none."""
        if kind is not None:
            headers = {"Authorization": f"Bearer {self.secrets[kind]}"} | headers
        client = httpx.Client(
            base_url=self.url, headers=headers, timeout=DEADLINE_SECONDS, trust_env=False, verify=_TLS
        )
        return self.clients.enter_context(client)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns, run on the receiver's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE_SECONDS)

    def write(self, *submissions: Submission) -> list[Outcome]:
        """Write straight to the store."""
        return self.run(self.store.write(submissions))


@contextmanager
def live_receiver(
    folder: Path,
    *,
    wrap: Callable[[Store], Any] = lambda store: store,
    settings: AppSettings = UNCACHED,
    extra_routes: Sequence[Route] = (),
    access_log: JsonLines | None = None,
    now_ms: Callable[[], int] = lambda: NOW_MS,
) -> Iterator[Live]:
    """A receiver on a free port. `wrap` may put something between the receiver and the store."""
    with running_loop() as loop, ExitStack() as stack:

        def run(coroutine: Coroutine[Any, Any, T]) -> T:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(DEADLINE_SECONDS)

        real = run(open_store(folder / "receiver.db", create=True))
        stack.callback(lambda: run(real.aclose()))
        secrets = run(make_tokens(real))
        receiver = Receiver.create(
            wrap(real),
            settings,
            access_log=access_log,
            now_ms=now_ms,
            request_prefix="made",
            extra_routes=extra_routes,
        )
        url = stack.enter_context(serving(receiver, loop))
        clients = stack.enter_context(ExitStack())
        yield Live(url=url, receiver=receiver, store=real, secrets=secrets, clients=clients, loop=loop)


async def make_tokens(store: Store) -> dict[str, str]:
    """A token for each of KINDS, and an unknown one."""
    secrets = {kind: new_token(scope) for kind, (scope, _, _) in KINDS.items()}
    outcomes = await store.write(
        [
            TokenCreate(scope=scope, token_hash=token_hash(secrets[kind]), at_ms=NOW_MS, device_id=device, sites=sites)
            for kind, (scope, device, sites) in KINDS.items()
        ]
    )
    revoked = dict(zip(KINDS, outcomes, strict=True))["revoked"]
    assert isinstance(revoked, Token)
    await store.write([TokenRevoke(token_id=revoked.id, at_ms=NOW_MS)])
    return secrets | {"wrong": new_token("device")}


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_SECONDS)
        loop.close()


class _Server(uvicorn.Server):
    """Says when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def serving(receiver: Receiver, loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    """Serve on a free port as the product does; the address."""
    config = uvicorn.Config(
        receiver.app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    server = _Server(config)

    async def serve(listener: socket.socket) -> None:
        async with receiver.running():
            await server._serve([listener])  # `serve` would take over the signals, which a thread may not

    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = asyncio.run_coroutine_threadsafe(serve(listener), loop)
        try:
            assert server.up.wait(DEADLINE_SECONDS)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            done.result(DEADLINE_SECONDS)
