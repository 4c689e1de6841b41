"""Who is calling: bearer tokens, kept as hashes, and what each scope may do.

A token is `psd_`, `psa_`, `psv_` or `psm_` and 256 random bits, shown once. Its SHA-256 finds it: with 256 bits a
slower hash adds nothing.
"""

import asyncio
import enum
import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

import msgspec

from pisync_receiver.domain.rows import Token
from pisync_receiver.domain.sessions import is_session
from pisync_receiver.domain.submissions import Actor, Scope, TokenRefused
from pisync_receiver.errors import Overloaded, Problem, StoreUnusable
from pisync_receiver.http.rates import Rates

log = logging.getLogger(__name__)

PREFIXES: Final[dict[Scope, str]] = {"device": "psd_", "admin": "psa_", "viewer": "psv_", "metrics": "psm_"}
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="pisync"'}
_REFUSED: Final = {"WWW-Authenticate": 'Bearer realm="pisync", error="invalid_token"'}


class Access(enum.Enum):
    """Who may make a call. Every route names one; the value says it to people."""

    PUBLIC = "anyone"
    DEVICE = "device"
    """A device, for its own data: the handler compares the body's device_id through `Caller.check_is`."""
    READER = "admin, viewer"
    OWNER = "admin, viewer, the device itself"
    """As READER, and the device whose id stands in the path."""
    ADMIN = "admin"
    """An admin; if it is limited to sites, it acts on those alone."""
    CHIEF = "admin of all sites"
    METRICS = "admin or viewer of all sites, metrics"


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes this call. `scope` is None for a public route and for `--auth off`, where anyone may do anything."""

    scope: Scope | None
    token_id: int | None = None
    device_id: str | None = None
    sites: tuple[str, ...] | None = None
    """The only sites it may see; None for all."""
    label: str | None = None
    """What an admin called the token."""
    address: str | None = None
    """Where the request came from."""

    @property
    def actor(self) -> Actor:
        """Who this is in the audit log."""
        named = "anyone (auth is off)" if self.scope is None else f"{self.scope} token {self.token_id}"
        return Actor(name=self.label or named, token_id=self.token_id, address=self.address)

    def check_is(self, device_id: str) -> None:
        """Raise Problem 403 unless this caller may speak for `device_id`."""
        if self.scope is not None and self.device_id != device_id:
            raise forbidden("this token belongs to another device; a device may only speak for itself")

    def sees(self, site: str | None) -> bool:
        """Whether a device of this site is visible to the caller."""
        return self.sites is None or site in self.sites


NO_CALLER: Final = Caller(scope=None)
LOCAL_ADMIN: Final = Caller(scope="admin", label="the receiver's owner, on its machine")


def new_token(scope: Scope) -> str:
    """Return a fresh secret; show it once and keep only its `token_hash`."""
    return PREFIXES[scope] + secrets.token_urlsafe(32)


def token_hash(secret: str) -> str:
    """Return what is stored of a token or an enrollment code, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def forbidden(detail: str) -> Problem:
    return Problem(403, "forbidden", detail)


class Gate:
    """Lets a caller in, or not, by its token and the route's `access`."""

    def __init__(
        self,
        tokens: "TokenDirectory",
        *,
        required: bool,
        now_ms: Callable[[], int],
        on_ended: Callable[[Token, int], None],
        rates: Rates | None = None,
    ) -> None:
        """`on_ended` is called with a token that was used after its end."""
        self._tokens = tokens
        self._required = required
        self._now_ms = now_ms
        self._on_ended = on_ended
        self._rates = rates

    async def admit(
        self,
        access: Access,
        headers: Mapping[bytes, bytes],
        path: Mapping[str, str],
        *,
        local: bool,
        address: str | None = None,
    ) -> Caller:
        """Return the caller. Raises Problem 401 without a usable token, 403 for a token of another scope or device,
        429 for a device that calls too often."""
        if access is Access.PUBLIC or not self._required:
            return NO_CALLER if address is None else Caller(scope=None, address=address)
        if local:
            check_allowed(access, LOCAL_ADMIN, path)
            return LOCAL_ADMIN
        token = await self._tokens.look_up(_bearer(headers))
        if token is None or is_session(token):  # pages alone take sessions, so a call needs no CSRF token
            raise Problem(401, "unauthorized", "unknown token; ask an admin for a new one", headers=_REFUSED)
        if token.revoked_ms is not None or token.expires_ms is not None:
            self._check_not_ended(token)
        caller = caller_of(token, address)
        check_allowed(access, caller, path)
        if token.device_id is not None and self._rates is not None:
            self._rates.spend(token.device_id)
        return caller

    def check(self, access: Access, caller: Caller, path: Mapping[str, str]) -> None:
        """Raise Problem 403 unless a caller that is known may make this call."""
        if access is not Access.PUBLIC and self._required:
            check_allowed(access, caller, path)

    def _check_not_ended(self, token: Token) -> None:
        """Either end may lie ahead: that is how two tokens overlap."""
        now = self._now_ms()
        for end, code, done in (
            (token.revoked_ms, "token_revoked", "was revoked"),
            (token.expires_ms, "token_expired", "has expired"),
        ):
            if end is not None and end <= now:
                self._on_ended(token, now)
                raise Problem(401, code, f"this token {done}; enroll again or ask an admin", headers=_REFUSED)


def caller_of(token: Token, address: str | None) -> Caller:
    """Return who calls with a token or a session."""
    return Caller(
        scope=cast(Scope, token.scope),
        token_id=token.id if token.parent_id is None else token.parent_id,
        device_id=token.device_id,
        sites=None if token.sites is None else tuple(msgspec.json.decode(token.sites, type=list[str])),
        label=token.label,
        address=address,
    )


def _bearer(headers: Mapping[bytes, bytes]) -> str:
    scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not secret:
        raise Problem(401, "unauthorized", "send the header Authorization: Bearer TOKEN", headers=_CHALLENGE)
    return secret.strip().decode("latin-1")


_SCOPES: Final[dict[Access, tuple[Scope, ...]]] = {
    Access.DEVICE: ("device",),
    Access.READER: ("admin", "viewer"),
    Access.OWNER: ("device", "admin", "viewer"),
    Access.ADMIN: ("admin",),
    Access.CHIEF: ("admin",),
    Access.METRICS: ("admin", "viewer", "metrics"),
}
_OF_ALL_SITES: Final = frozenset({Access.CHIEF, Access.METRICS})


def check_allowed(access: Access, caller: Caller, path: Mapping[str, str]) -> None:
    """Raise Problem 403 unless the route is for this caller."""
    if (
        caller.scope not in _SCOPES[access]
        or (caller.sites is not None and access in _OF_ALL_SITES)
        or (access is Access.OWNER and caller.scope == "device" and caller.device_id != path["device_id"])
    ):
        raise forbidden(f"this call is for: {access.value}")


# Token look-ups


KEEP_S: Final = 2.0
PATIENCE_S: Final = 10.0
"""How long a call waits for its token to be looked up before it is answered 503."""
SIZE: Final = 50_000
"""Tokens remembered; 20 MB of them."""
QUERY_HASHES: Final = 1_000
"""Most hashes of one query."""


class TokenSource(Protocol):
    """The store's part."""

    async def tokens_by_hash(self, hashes: Sequence[str]) -> list[Token]: ...


class TokenDirectory:
    """Looks tokens up in the store and remembers them for two seconds. Used on the event loop.

    What is asked for while one query runs becomes the next query. A row is believed for `KEEP_S` from before its query
    began, so a token that was revoked anywhere ends everywhere within that time. What this receiver creates or revokes
    itself is known at once: no query that began earlier brings the old state back.
    """

    def __init__(
        self,
        store: TokenSource,
        *,
        clock: Callable[[], float],
        size: int = SIZE,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`clock` counts seconds and never goes back."""
        self._store = store
        self._clock = clock
        self._size = size
        self._patience_s = patience_s
        self._remembered: OrderedDict[str, tuple[Token, float]] = OrderedDict()
        self._wanted: dict[str, asyncio.Future[Token | None]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._changed: dict[str, Token] = {}
        """What this receiver changed since the running query began."""
        self._cleared = False

    def put(self, token: Token) -> None:
        """Note a token that this receiver created or changed."""
        self._changed[token.token_hash] = token
        self._remember(token, self._clock())

    def clear(self) -> None:
        """Forget what is remembered, because this receiver changed tokens that it does not know one by one."""
        self._remembered.clear()
        self._cleared = True

    async def look_up(self, secret: str) -> Token | None:
        """Return the token's row, ended or not; None for an unknown token. Raises StoreUnusable."""
        digest = token_hash(secret)
        known = self._remembered.get(digest)
        if known is not None and self._clock() < known[1] + KEEP_S:
            return known[0]
        return await asyncio.shield(self._ask(digest))

    def _ask(self, digest: str) -> "asyncio.Future[Token | None]":
        """Return the future answer of the next query, which includes this look-up."""
        loop = asyncio.get_running_loop()
        answer = self._wanted.get(digest)
        if answer is None:
            answer = self._wanted[digest] = loop.create_future()
        if self._asking is None or self._asking.done():
            self._asking = loop.create_task(self._ask_for_all())
        return answer

    async def _ask_for_all(self) -> None:
        while self._wanted:
            digests = list(self._wanted)[:QUERY_HASHES]
            wanted = {digest: self._wanted.pop(digest) for digest in digests}
            try:
                found = await self._query(digests)
            except Exception as error:
                _fail(wanted.values(), error)
                continue
            for digest, answer in wanted.items():
                if not answer.done():
                    answer.set_result(found.get(digest))

    async def _query(self, digests: Sequence[str]) -> dict[str, Token]:
        """Return the tokens of some hashes. Raises StoreUnusable, also where the answer is too old when it comes."""
        self._changed.clear()
        self._cleared = False
        began = self._clock()
        try:
            tokens = await asyncio.wait_for(self._store.tokens_by_hash(digests), self._patience_s)
        except TimeoutError as error:
            raise StoreUnusable(f"tokens could not be looked up within {self._patience_s:g} s") from error
        if self._clock() >= began + KEEP_S:
            raise StoreUnusable(f"a look-up of tokens took over {KEEP_S:g} s, so its answer is not believed")
        if self._cleared:
            return await self._query(digests)
        for token in tokens:
            self._remember(token, began)
        return {token.token_hash: token for token in tokens} | self._changed

    def _remember(self, token: Token, since: float) -> None:
        known = self._remembered.get(token.token_hash)
        if known is not None and known[1] > since:
            return
        self._remembered[token.token_hash] = (token, since)
        self._remembered.move_to_end(token.token_hash)
        if len(self._remembered) > self._size:
            self._remembered.popitem(last=False)


def _fail(answers: "Iterable[asyncio.Future[Token | None]]", error: Exception) -> None:
    for answer in answers:
        if not answer.done():
            answer.set_exception(error)
            answer.exception()  # its caller may be gone; an error that is never retrieved would be logged


class EndedTokens:
    """Has the store note the use of an ended token, at most once a minute each.

    It is the only trace of a device that can no longer get through.
    """

    EVERY_MS: Final = 60_000

    def __init__(self, submit: "Callable[[TokenRefused], asyncio.Future[Any]]") -> None:
        self._submit = submit
        self._noted: dict[int, int] = {}

    def note(self, token: Token, now_ms: int) -> None:
        """Note a refusal at `now_ms`, in the background."""
        if 0 <= now_ms - self._noted.get(token.id, -self.EVERY_MS) < self.EVERY_MS:
            return
        self._noted[token.id] = now_ms
        try:
            future = self._submit(TokenRefused(token_id=token.id, at_ms=now_ms))
        except Overloaded:
            return  # the next refusal is noted instead
        future.add_done_callback(_log_failure)


def _log_failure(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("a refused token could not be noted", exc_info=error)
