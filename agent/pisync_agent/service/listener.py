"""The socket on which the service listens: systemd's, which stays while the service restarts, or one of its own."""

import contextlib
import socket
from pathlib import Path

from pisync_agent.outbox import files
from pisync_common import unix_socket
from pisync_common.errors import LockHeld
from pisync_common.systemd import passed_listener


class Listener:
    """The socket at `path`. The caller holds the writer's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own: tuple[int, int] | None = None

    def open(self) -> socket.socket:
        """Return the socket that systemd has passed to this process, or else bind one. Raises LockHeld, OSError."""
        return passed_listener(self._path) or self._bind()

    def remove(self) -> None:
        """Remove a socket that this process has bound; systemd's stays, also where it has taken its place."""
        with contextlib.suppress(OSError):
            if self._own == files.identity(self._path):
                self._path.unlink()

    def _bind(self) -> socket.socket:
        """Refuse where systemd listens: it would go on listening at a socket that no app finds any more."""
        if unix_socket.is_served(self._path):
            raise LockHeld(
                f"systemd listens at {self._path} for its own service; nothing was changed. "
                "To start it: sudo systemctl start pisync-agent"
            )
        # The agent's group may record; the owner of the folder decides who may enter it.
        bound = unix_socket.listen(self._path, mode=0o660)
        self._own = files.identity(self._path)
        return bound
