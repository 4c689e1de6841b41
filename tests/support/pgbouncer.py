"""A real PgBouncer in transaction mode between a worker and PostgreSQL."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import free_port, listens, wait_until
from tests.support.services import installed

_CONFIG = """
[databases]
* = host={host} port={server_port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
"""


@contextmanager
def pgbouncer(host: str, server_port: int, user: str) -> Iterator[int]:
    """Give the port of a PgBouncer before this server; see `installed`."""
    program = installed("pgbouncer")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(_CONFIG.format(port=port, host=host, server_port=server_port, user=user))
        Path(folder).chmod(0o755)
        config.chmod(0o644)
        unprivileged = ["-u", "daemon"] if os.geteuid() == 0 else []  # it refuses to be root
        process = subprocess.Popen([program, "-q", *unprivileged, str(config)], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: listens(port) or process.poll() is not None, "pgbouncer listens")
            assert process.poll() is None
            yield port
        finally:
            process.kill()
            process.wait()
