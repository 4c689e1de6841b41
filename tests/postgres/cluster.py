"""A PostgreSQL server of a test's own, which it may stop, kill and configure."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import psycopg
import pytest

USER: Final = "pisync"
STANDBY: Final = "standby"
"""The name under which a standby tells its primary what it has."""
_UNPRIVILEGED: Final = "postgres"
_QUIET: Final = (
    "shared_buffers = 32MB",
    "max_connections = 60",
    "autovacuum = off",
    "log_min_messages = fatal",
    "listen_addresses = '127.0.0.1'",
)


@cache
def programs() -> Path | None:
    """The folder of initdb and pg_ctl; None where there is none."""
    if installed := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):  # Debian's, in no PATH
        return installed[-1].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


needs_cluster = pytest.mark.skipif(
    programs() is None, reason="PostgreSQL's initdb is not installed, so no server was stopped and started"
)


class Cluster:
    """Stopped, until `start`. Its port stays the same."""

    def __init__(self, folder: Path, *, lines: Sequence[str] = (), of: "Cluster | None" = None) -> None:
        """A new cluster; or a standby `of` a running cluster."""
        self._folder = folder
        self._data = folder / "data"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        if os.geteuid() == 0:
            shutil.chown(folder, _UNPRIVILEGED)
        if of is None:
            self._run(
                "initdb", "--username", USER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"
            )
        else:
            source = f"host=127.0.0.1 port={of.port} user={USER} application_name={STANDBY}"
            self._run("pg_basebackup", "--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname", source)
        self.configure(*_QUIET, f"port = {self.port}", f"unix_socket_directories = '{folder}'", *lines)

    @property
    def url(self) -> str:
        """Of its database `postgres`."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def configure(self, *lines: str) -> None:
        """Add lines to postgresql.conf; they count from the next start."""
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self._run("pg_ctl", "start", "--wait", "--silent", "--log", str(self._folder / "log"))

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is a crash: what was under way is lost, and the next start recovers."""
        self._run("pg_ctl", "stop", "--wait", "--silent", "--mode", mode)

    def restart(self, mode: str = "immediate") -> None:
        self.stop(mode)
        self.start()

    def promote(self) -> None:
        """A standby takes over."""
        self._run("pg_ctl", "promote", "--wait", "--silent")

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children notice and end."""
        os.kill(int((self._data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def create(self, database: str) -> str:
        """Make a database; its URL."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}".encode())
        return f"{self.url.rpartition('/')[0]}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        folder = programs()
        assert folder is not None
        command = [str(folder / program), "-D", str(self._data), *arguments]
        if os.geteuid() == 0:  # it refuses to be root
            command = ["setpriv", f"--reuid={_UNPRIVILEGED}", f"--regid={_UNPRIVILEGED}", "--clear-groups", *command]
        with tempfile.TemporaryFile("w+") as output:  # not a pipe: the server that pg_ctl leaves behind would hold it
            done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
            output.seek(0)
            assert done.returncode == 0, f"{program}: {output.read()}"


@contextmanager
def cluster(*lines: str, standby_of: Cluster | None = None) -> Iterator[Cluster]:
    """A running server with these lines of configuration, and nothing of it afterwards."""
    with tempfile.TemporaryDirectory(prefix="pisync-pg-") as name:
        server = Cluster(Path(name), lines=lines, of=standby_of)
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(AssertionError):  # it was stopped or killed already
                server.stop("immediate")
