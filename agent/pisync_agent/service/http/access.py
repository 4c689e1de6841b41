"""Who may ask over HTTP.

Every process of this machine reaches loopback, whatever its user, so a request needs the token in `http-token`, which
only the agent's group can read, unless the settings open it to all. A page of any site reaches loopback through its
visitor's browser, so the page's origin has to be on the list, token or not; and the name in `Host` has to be this
machine's, so that a name which is made to lead here (DNS rebinding) leads to nothing.
"""

import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final

from pisync_agent.errors import StoreUnusable
from pisync_agent.outbox import files
from pisync_agent.service.http.messages import Answer, Head, problem

TOKEN_FILE: Final = "http-token"  # noqa: S105 - a name
TOKEN_MODE: Final = 0o640
PREFLIGHT_S: Final = 600
"""How long a browser may remember what a preflight allowed."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{32,256}")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Checks a request's head before its body is read."""

    port: int
    origins: frozenset[str]
    """Origins of pages that may ask, each as browsers send it; `null` is that of files and sandboxed frames."""
    token: str | None = field(repr=False)
    """None: no token is needed."""

    def refusal(self, head: Head) -> Answer | None:
        """Return the answer to a request that may not be made."""
        origin, host = head.headers.get("origin"), head.headers.get("host", "").lower()
        if host not in (f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")):
            return problem(HTTPStatus.MISDIRECTED_REQUEST, "host", f"ask 127.0.0.1:{self.port}, not {host[:80]!r}")
        if origin is not None and origin not in self.origins:
            detail = f"pages of {origin[:200]!r} may not record here; add this origin to http_origins in agent.toml"
            return problem(HTTPStatus.FORBIDDEN, "origin", detail)
        if head.method == "OPTIONS" or self._has_token(head):
            return None
        detail = f"send the token in the agent's file {TOKEN_FILE} as Authorization: Bearer TOKEN"
        return problem(HTTPStatus.UNAUTHORIZED, "unauthorized", detail, WWW_Authenticate="Bearer")

    def headers(self, head: Head) -> Mapping[str, str]:
        """Return the headers with which a browser shows an answer to the page that asked (CORS)."""
        origin = head.headers.get("origin")
        if origin not in self.origins:
            return {"Vary": "Origin"}
        return {"Vary": "Origin", "Access-Control-Allow-Origin": str(origin)}

    def preflight(self, head: Head, method: str) -> Answer:
        """Return the answer to a browser that asks before it sends a page's request."""
        allowed = {
            "Access-Control-Allow-Methods": method,
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": str(PREFLIGHT_S),
        }
        if head.headers.get("access-control-request-private-network") == "true":
            allowed["Access-Control-Allow-Private-Network"] = "true"
        return Answer.of(HTTPStatus.NO_CONTENT).with_headers(allowed)

    def _has_token(self, head: Head) -> bool:
        if self.token is None:
            return True
        scheme, _, given = head.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())


def load_token(home: Path) -> str:
    """Return the token in the agent's folder, made on the first call. Raises StoreUnusable."""
    path = home / TOKEN_FILE
    with files.errors(path):
        if not path.exists():
            _write_token(path)
        token = path.read_bytes()[:1024].decode("ascii", "replace").strip()
    if not _TOKEN.fullmatch(token):
        raise StoreUnusable(f"{path} holds no token of 32 to 256 letters and digits: delete it, and a new one is made")
    return token


def _write_token(path: Path) -> None:
    made = path.with_name(f"{path.name}.new")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, TOKEN_MODE)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), TOKEN_MODE)  # whatever the umask: the group reads it
        file.write(files.random_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    made.replace(path)
