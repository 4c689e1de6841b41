"""The receiver's API for commands: over `--url`, through its Unix socket, or in this process where none runs."""

import argparse
import asyncio
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import httpx

from pisync_common import unix_socket
from pisync_common.errors import LockHeld, SettingError
from pisync_common.settings import DEFAULT, Settings
from pisync_receiver import config
from pisync_receiver.errors import NotFound, ReceiverError, WrongUsage
from pisync_receiver.http.params import Param, Query
from pisync_receiver.store import opening
from pisync_receiver.store.address import Address

ANSWER_SECONDS: Final = 120.0
START_SECONDS: Final = 15.0
"""How long a command waits for a receiver that holds the lock and has no socket yet, or is about to stop."""
_NEXT_CURSOR: Final = re.compile(r"<[^>]*[?&]cursor=([^&>]+)[^>]*>; *rel=\"?next")


class Api:
    """Calls of one command."""

    def __init__(self, client: httpx.AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer's JSON. Raises NotFound, WrongUsage, ReceiverError with the receiver's own words."""
        return self._answer(method, path, body, {}).json()

    def page(self, path: str, query: Mapping[str, str]) -> tuple[list[dict[str, Any]], str | None]:
        """Return the rows of one page, and the cursor of the next. Raises as `call`."""
        answer = self._answer("GET", path, None, query)
        link = _NEXT_CURSOR.search(answer.headers.get("link", ""))
        return answer.json(), unquote(link[1]) if link else None

    def export(
        self,
        path: str,
        query: Mapping[str, str],
        begin: Callable[[int | None], None],
        write: Callable[[bytes], None],
    ) -> None:
        """Hand an export to `write`, a part at a time, after `begin` got the number of its rows, if that is known.
        Raises as `call`; ReceiverError also where the export ends early."""
        self._runner.run(self._export(path, query, begin, write))

    async def _export(
        self,
        path: str,
        query: Mapping[str, str],
        begin: Callable[[int | None], None],
        write: Callable[[bytes], None],
    ) -> None:
        try:
            async with self._client.stream("GET", path, params=query) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise _problem(answer)
                total = answer.headers.get("pisync-total", "")
                begin(int(total) if total.isdecimal() else None)
                async for chunk in answer.aiter_bytes():
                    write(chunk)
        except UnicodeEncodeError as error:
            raise WrongUsage("an argument is not text in UTF-8; nothing was asked") from error
        except httpx.HTTPError as error:
            raise ReceiverError(f"the export ended early: {error or type(error).__name__}; start it again") from error

    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str]
    ) -> httpx.Response:
        try:
            answer = self._runner.run(self._client.request(method, path, params=query, json=body))
        except UnicodeEncodeError as error:
            raise WrongUsage("an argument is not text in UTF-8; nothing was asked") from error
        except httpx.HTTPError as error:
            doubt = "" if method == "GET" else "; whether it was done is unknown, so look before you try again"
            raise ReceiverError(
                f"no answer from {self._client.base_url}: {error or type(error).__name__}{doubt}"
            ) from error
        if answer.is_success:
            return answer
        raise _problem(answer)


def _problem(answer: httpx.Response) -> ReceiverError:
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"{answer.url.copy_with(path='/', query=None)} answered {answer.status_code}; is it a PiSync receiver?"
    return _ERRORS.get(answer.status_code, ReceiverError)(detail)


_ERRORS: Final[dict[int, type[ReceiverError]]] = {400: WrongUsage, 404: NotFound}


@contextmanager
def connected(settings: Settings, *, making: Callable[[str], None] | None = None) -> Iterator[Api]:
    """Reach the receiver that the settings name. With `making`, a database that they name is made where none is yet,
    after a call of `making` that says so. Raises LockHeld if another process keeps the lock without a socket,
    ReceiverError, and what opening the database raises."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            yield Api(runner.run(_client(settings, stack, making)), runner)
        finally:
            runner.run(stack.aclose())


async def _client(settings: Settings, stack: AsyncExitStack, making: Callable[[str], None] | None) -> httpx.AsyncClient:
    if (url := settings[config.URL]) is not None:
        headers = {"authorization": f"Bearer {_token(settings)}"}
        return await stack.enter_async_context(_http(url, headers=headers))
    path = config.socket_path(settings)
    deadline = time.monotonic() + START_SECONDS
    while True:
        if path is not None and _is_served(path):
            name = stack.enter_context(unix_socket.address(path))
            return await stack.enter_async_context(_http("http://receiver", httpx.AsyncHTTPTransport(uds=name)))
        try:
            return await _in_process(settings, stack, making)
        except LockHeld:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)  # its socket opens, or its lock is freed, in a moment; neither can be waited for


async def _in_process(
    settings: Settings, stack: AsyncExitStack, making: Callable[[str], None] | None
) -> httpx.AsyncClient:
    """Be the receiver for this command, with the writer's lock."""
    from pisync_receiver.app import AppSettings, Receiver

    database = settings[config.DATABASE]
    create = making is not None and settings.source(config.DATABASE) != DEFAULT
    if not create:
        check_exists(settings)
    become_owner(database)
    if making is not None and not opening.exists(database):
        making(f"There was no database yet; making {database}.")
    stack.enter_context(opening.writing(database, "a pisync-receiver command"))
    store = await opening.open_store(database, create=create)
    stack.push_async_callback(store.aclose)
    options = AppSettings(
        pages=False, silent_after_s=settings[config.SILENT_AFTER], erasures_file=config.erasures_path(settings)
    )
    receiver = Receiver.create(store, options)
    await stack.enter_async_context(receiver.running())
    transport = httpx.ASGITransport(receiver.local, raise_app_exceptions=False)
    return await stack.enter_async_context(_http("http://receiver", transport))


def check_exists(settings: Settings) -> None:
    """Raise NotFound where there is no database: a command that made one would answer from an empty one."""
    if not opening.exists(database := settings[config.DATABASE]):
        raise NotFound(
            f"there is no database at {database} yet; nothing was changed; `pisync-receiver serve` creates it, or name "
            f"the receiver's with --database-url or as database_url in {config.SYSTEM_FILE}"
        )


def become_owner(database: Address) -> None:
    """Continue as the owner of the database's folder if root calls: files of root there would keep the receiver from
    its database. Raises ReceiverError where root would have to make the folder."""
    if not isinstance(database, Path) or os.geteuid() != 0:
        return
    folder = next(parent for parent in database.parents if parent.exists())
    owner = folder.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    elif folder != database.parent:
        raise ReceiverError(
            f"there is no folder {database.parent}; nothing was changed; make it for the receiver's user: "
            f"install -d -m 700 -o pisync-receiver -g pisync-receiver {shlex.quote(str(database.parent))}"
        )


def _http(
    url: str, transport: httpx.AsyncBaseTransport | None = None, headers: Mapping[str, str] | None = None
) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(
            base_url=url,
            transport=transport,
            headers={"cache-control": "no-cache", **(headers or {})},
            timeout=ANSWER_SECONDS,
        )
    except httpx.InvalidURL as error:
        raise SettingError(f"url = {url!r}: {error}") from error


def _token(settings: Settings) -> str:
    file = settings[config.TOKEN_FILE]
    if file is None:
        raise SettingError("token_file: --url needs --token-file, a file with the token to send")
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"token_file: cannot read {file}: {error}") from error
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingError(f"token_file: {file} must hold one token and nothing else")
    return token


def _is_served(path: Path) -> bool:
    """Whether a receiver listens at a socket's path. Raises ReceiverError if it is not ours to open."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with probe, unix_socket.address(path) as name:
            probe.connect(name)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except PermissionError as error:
        raise ReceiverError(
            f"{path} is not yours to open; run this as the user that runs the receiver, or use --url and --token-file"
        ) from error
    return True


# Flags that are query parameters of the API


def flags_of(query: Query) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Return a flag for each query parameter, as `ArgumentParser.add_argument` takes it."""
    return [
        (("--" + param.name.replace("_", "-"),), {"dest": param.name, "metavar": _metavar(param), "help": _help(param)})
        for param in query.params
    ]


def _help(param: Param) -> str:
    default = "" if param.default is None else f" (default: {param.default})"
    return (param.summary + default).replace("%", "%%")


def query_of(arguments: argparse.Namespace, query: Query) -> dict[str, str]:
    """Return the query that the command line asks for."""
    given = {param.name: getattr(arguments, param.name) for param in query.params}
    return {name: value for name, value in given.items() if value is not None}


def _metavar(param: Param) -> str:
    options = param.schema.get("enum")
    if isinstance(options, Sequence):
        return "|".join(str(option) for option in options)
    return {"integer": "N", "boolean": "true|false"}.get(str(param.schema.get("type")), param.name.upper())
