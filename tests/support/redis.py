"""Redis for tests: the server that answers, and one of the test's own that may be killed and frozen."""

import os
import shutil
import signal
import subprocess
import uuid
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest
import redis

from tests.support.ports import free_port
from tests.support.receiver_process import wait_until
from tests.support.services import NOTHING_LEFT_OUT

SERVER: Final = os.environ.get("PISYNC_TEST_REDIS", "redis://127.0.0.1:6379/0")


@cache
def answers() -> bool:
    """Whether there is a server to test with. Raises if there has to be."""
    try:
        with redis.Redis.from_url(SERVER, socket_connect_timeout=2, socket_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        if NOTHING_LEFT_OUT:
            raise
        return False


needs_redis = pytest.mark.skipif(
    not answers(), reason="no Redis answers; name one with PISYNC_TEST_REDIS to run these tests"
)
needs_redis_server = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="no redis-server is installed (Debian: redis-server)"
)


def fresh_space() -> str:
    """A name that nothing else in the server has."""
    return f"test-{uuid.uuid4().hex}"


class RedisProcess:
    """A server of one's own, in memory alone; every start after the first takes the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self._port), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._folder), "--logfile", str(self._folder / "redis.log")]
        )
        wait_until(self._is_up, "Redis answers")
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It takes connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _is_up(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
