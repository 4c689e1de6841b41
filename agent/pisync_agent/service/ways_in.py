"""The ways in for apps beside the Unix socket: the spool folder, and HTTP where the settings ask for it."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pisync_agent.config as config
from pisync_agent.errors import AgentError
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.service.server import LocalServer
from pisync_agent.service.spool import Spool
from pisync_common.settings import Settings

log = logging.getLogger(__name__)

RETRY_S: Final = 15.0
"""How soon a port is tried again that another program has."""

Status = Callable[[], Mapping[str, Any]]


def open_ways_in(
    stack: AsyncExitStack, home: Path, settings: Settings, *, server: LocalServer, outbox: Outbox, status: Status
) -> None:
    """Take what apps record by files and over HTTP, until the stack is closed; `server` records it."""
    spool = Spool(home=home, record=server.record, stamp=server.stamp, note=outbox.note, set_note=outbox.set_note)
    stack.callback(asyncio.create_task(spool.run_forever()).cancel)
    if settings[config.HTTP_PORT] is not None:
        stack.callback(asyncio.create_task(_serve_http(home, settings, server, outbox, status)).cancel)


async def _serve_http(home: Path, settings: Settings, server: LocalServer, outbox: Outbox, status: Status) -> None:
    # h11 and hmac are imported only where they are needed.
    from pisync_agent.service.http.access import Access, load_token
    from pisync_agent.service.http.api import Api
    from pisync_agent.service.http.server import HttpServer

    port = settings[config.HTTP_PORT]
    assert port is not None
    try:
        token = load_token(home) if settings[config.HTTP_TOKEN] else None
    except AgentError as error:
        log.error("HTTP is off: %s", error)
        return
    api = Api(
        access=Access(port=port, origins=settings[config.HTTP_ORIGINS], token=token),
        record=server.record,
        status=lambda: _status(status(), outbox),
        stamp=server.stamp,
    )
    http = HttpServer(api=api, port=port)
    try:
        await _listen(http)
        await asyncio.Event().wait()
    finally:
        http.close()


async def _listen(http: Any) -> None:
    """Start the server, however long another program has the port."""
    logged = False
    while True:
        try:
            await http.start()
        except OSError as error:
            if not logged:
                log.error("HTTP is off while port %d cannot be used: %s", http.port, error.strerror or error)
            logged = True
            await asyncio.sleep(RETRY_S)
        else:
            log.info("HTTP: listening on 127.0.0.1:%d", http.port)
            return


def _status(service: Mapping[str, Any], outbox: Outbox) -> dict[str, Any]:
    """Return what an app may see: counts, and nothing of what learners did."""
    state = outbox.state()
    fault = service["write_fault"]
    return {
        "agent": service["version"],
        "enrolled": service["enrolled"],
        "waiting": state.waiting,
        "dead": state.dead,
        "write_fault": fault and fault["code"],
        "next_run_in_s": service["next_run_in_s"],
    }
