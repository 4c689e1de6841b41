"""The receiver's app behind a real uvicorn in a thread, on a store of its own, with a token of each kind.

with live_receiver(tmp_path) as live:
    live.client("admin").get("/api/devices")
"""

import itertools
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from pisync_receiver.app import AppSettings, create_app
from pisync_receiver.auth import Tokens, new_token, token_hash
from pisync_receiver.caching import OwnCache, telling
from pisync_receiver.intake import Intake, IntakeLimits
from pisync_receiver.limits import each_device
from pisync_receiver.metrics import Metrics
from pisync_receiver.routing import Route
from pisync_receiver.store import Role, Store, TokenCreate, TokenRevoke
from pisync_receiver.store.sqlite import open_store

NOW_MS = 1_795_428_000_000  # 2026-11-23T10:00:00Z
DEADLINE_SECONDS = 60.0
DEVICE, OTHER = "pibook-0042", "pibook-0043"

KINDS: Mapping[str, tuple[Role, str | None]] = {
    "device": ("device", DEVICE),
    "other device": ("device", OTHER),
    "revoked": ("device", DEVICE),
    "admin": ("admin", None),
    "viewer": ("viewer", None),
}


@dataclass(frozen=True, kw_only=True)
class Live:
    """A running receiver. `secrets` has a token for each of KINDS and one that nobody made, "wrong"."""

    url: str
    app: ASGIApp
    store: Store
    tokens: Tokens
    secrets: Mapping[str, str]
    clients: ExitStack

    def client(self, kind: str | None, **headers: str) -> httpx.Client:
        """A client that sends the token of `kind`; None sends none."""
        if kind is not None:
            headers = {"Authorization": f"Bearer {self.secrets[kind]}"} | headers
        client = httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_SECONDS, trust_env=False)
        return self.clients.enter_context(client)


@contextmanager
def live_receiver(
    folder: Path,
    *,
    wrap: Callable[[Store], Any] = lambda store: store,
    limits: IntakeLimits | None = None,
    settings: AppSettings | None = None,
    device_rate: int = 0,
    extra_routes: Sequence[Route] = (),
    now_ms: Callable[[], int] = lambda: NOW_MS,
) -> Iterator[Live]:
    """A receiver on a free port. `wrap` may put something between the intake and the store."""
    real = open_store(folder / "receiver.db", create=True)
    with ExitStack() as stack:
        stack.callback(real.close)
        store = wrap(real)
        secrets, tokens = make_tokens(real)
        metrics = Metrics(CollectorRegistry())
        cache = OwnCache()
        intake = Intake(
            store,
            limits=limits or IntakeLimits(),
            clock=time.monotonic,
            random=random.random,
            watcher=metrics,
            committed=telling(cache),
        )
        numbers = itertools.count(1)
        app = create_app(
            store=store,
            intake=intake,
            tokens=tokens,
            metrics=metrics,
            cache=cache,
            limits=each_device(device_rate, clock=time.monotonic),
            now_ms=now_ms,
            new_request_id=lambda: f"made-{next(numbers)}",
            settings=settings or AppSettings(),
            extra_routes=extra_routes,
        )
        url = stack.enter_context(serving(app))
        clients = stack.enter_context(ExitStack())
        yield Live(url=url, app=app, store=store, tokens=tokens, secrets=secrets, clients=clients)


def make_tokens(store: Store) -> tuple[dict[str, str], Tokens]:
    """A token for each of KINDS, and one that was never made."""
    secrets = {kind: new_token(role) for kind, (role, _) in KINDS.items()}
    creates = [
        TokenCreate(role=role, token_hash=token_hash(secrets[kind]), created_ms=NOW_MS, device_id=device_id)
        for kind, (role, device_id) in KINDS.items()
    ]
    rows: dict[str, Any] = dict(zip(KINDS, store.write(creates), strict=True))
    store.write([TokenRevoke(token_id=rows["revoked"].id, at_ms=NOW_MS)])
    return secrets | {"wrong": new_token("device")}, Tokens(store.all_tokens())


class _Server(uvicorn.Server):
    """Says when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve `app` on a free port as the product does; the address."""
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            assert server.up.wait(DEADLINE_SECONDS)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(DEADLINE_SECONDS)


class LogLines(logging.Handler):
    """Collects what a formatter makes of every record."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that happens in another thread."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)
