"""Who is calling: bearer tokens, kept as hashes, and what each role may do.

A token is `psd_`, `psa_` or `psv_` and 256 random bits, shown once. Its SHA-256 finds it: with 256 bits nothing
slower adds anything. Where one process alone writes the store, all tokens live in its memory, and whoever creates or
revokes one tells it at once; where several do, `directory` looks them up.
"""

import enum
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from pisync_receiver.errors import Problem
from pisync_receiver.store import Role, TokenRow

PREFIXES: Final[dict[Role, str]] = {"device": "psd_", "admin": "psa_", "viewer": "psv_"}
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="pisync"'}
_REFUSED: Final = {"WWW-Authenticate": 'Bearer realm="pisync", error="invalid_token"'}


class Who(enum.Enum):
    """Who may make a call. Every route names one."""

    ANYONE = "anyone"
    DEVICE = "device"
    """A device, for itself: the handler compares the body's device_id through `Caller.check_is`."""
    READER = "admin, viewer"
    OWNER = "admin, viewer, the device itself"
    """As READER, and the device whose id stands in the path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who makes this call. `role` is None for nobody in particular: a public route, or `--auth off`."""

    role: Role | None
    token_id: str | None = None
    device_id: str | None = None

    def check_is(self, device_id: str) -> None:
        """Raise Problem 403 unless this caller may speak for `device_id`."""
        if self.role is not None and self.device_id != device_id:
            raise forbidden("this token belongs to another device; a device speaks for itself only")


NOBODY: Final = Caller(role=None)


def new_token(role: Role) -> str:
    """A fresh secret; show it once and keep only its `token_hash`."""
    return PREFIXES[role] + secrets.token_urlsafe(32)


def token_hash(secret: str) -> str:
    """What is stored of a token or an enrollment code, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def forbidden(detail: str) -> Problem:
    return Problem(403, "forbidden", detail)


class TokenSource(Protocol):
    """Where tokens are looked up."""

    def put(self, row: TokenRow) -> None:
        """A token was made or changed by this receiver."""

    async def look_up(self, secret: str) -> TokenRow | None:
        """The token's row, ended or not; None for a token nobody made. Raises StoreUnusable."""


class Tokens:
    """Every token there is, by its hash: for a store that nobody else writes. Used on the event loop."""

    def __init__(self, rows: Iterable[TokenRow] = ()) -> None:
        self._by_hash: dict[str, TokenRow] = {}
        self._hash_of: dict[str, str] = {}
        for row in rows:
            self.put(row)

    def put(self, row: TokenRow) -> None:
        """Add a token, or replace what is known of it (revoked, given an end)."""
        self._by_hash[row.token_hash] = row
        self._hash_of[row.id] = row.token_hash

    def find(self, secret: str) -> TokenRow | None:
        """The token's row, revoked or not; None for a token nobody made."""
        digest = token_hash(secret)
        row = self._by_hash.get(digest)
        return row if row is not None and hmac.compare_digest(row.token_hash, digest) else None

    async def look_up(self, secret: str) -> TokenRow | None:
        return self.find(secret)


class Gate:
    """Lets a caller in, or not, by its token and the route's `who`."""

    def __init__(
        self,
        tokens: TokenSource,
        *,
        required: bool,
        now_ms: Callable[[], int],
        refused: Callable[[TokenRow, int], None],
        spend: Callable[[str], None] = lambda device_id: None,
    ) -> None:
        """`refused` hears of a token that had ended; `spend` counts a device's call, and raises Problem 429."""
        self._spend = spend
        self._tokens = tokens
        self._required = required
        self._now_ms = now_ms
        self._refused = refused

    async def admit(self, who: Who, headers: Mapping[bytes, bytes], path: Mapping[str, str]) -> Caller:
        """Who calls. Raises Problem 401 for no usable token, 403 for one of the wrong role or device, 429 for a device
        that comes too often."""
        if who is Who.ANYONE or not self._required:
            return NOBODY
        row = await self._tokens.look_up(_bearer(headers))
        if row is None:
            raise Problem(401, "unauthorized", "this token is not known here; ask an admin", headers=_REFUSED)
        now = self._now_ms()
        if _ended(row, now):
            self._refused(row, now)
            raise Problem(401, "token_ended", "this token was revoked or has expired; enroll again", headers=_REFUSED)
        caller = Caller(role=row.role, token_id=row.id, device_id=row.device_id)
        if not _may(who, caller, path):
            raise forbidden(f"this call is for: {who.value}")
        if caller.device_id is not None:
            self._spend(caller.device_id)
        return caller


def _bearer(headers: Mapping[bytes, bytes]) -> str:
    scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not secret:
        raise Problem(401, "unauthorized", "send the header Authorization: Bearer TOKEN", headers=_CHALLENGE)
    return secret.strip().decode("latin-1")


def _may(who: Who, caller: Caller, path: Mapping[str, str]) -> bool:
    match who:
        case Who.DEVICE:
            return caller.role == "device"
        case Who.READER:
            return caller.role in ("admin", "viewer")
        case Who.OWNER:
            return caller.role in ("admin", "viewer") or caller.device_id == path["device_id"]
        case Who.ANYONE:
            return True


def _ended(row: TokenRow, now_ms: int) -> bool:
    """Either end may lie ahead: that is how two tokens overlap."""
    return any(end is not None and end <= now_ms for end in (row.revoked_ms, row.expires_ms))
