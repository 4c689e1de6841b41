"""Sessions of people in a browser: the cookie that names one, its CSRF value, sign-in and its limits.

The cookie holds a secret of 256 random bits, stored as a hash like a token's. Pages take the cookie and never a bearer
token, calls of the API the bearer token and never the cookie.
"""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from pisync_receiver.domain.rows import Token
from pisync_receiver.domain.sessions import LASTS_MS, has_ended, idle_end, is_session
from pisync_receiver.domain.submissions import (
    Actor,
    AuditNote,
    Scope,
    SessionClose,
    SessionOpen,
    SessionUse,
    Submission,
)
from pisync_receiver.errors import Overloaded, Problem, SignInRefused
from pisync_receiver.http.auth import Caller, TokenDirectory, token_hash
from pisync_receiver.http.rates import Rates
from pisync_receiver.intake import Intake
from pisync_receiver.logs import fields

log = logging.getLogger(__name__)

COOKIE: Final = "pisync"
SECURE_COOKIE: Final = "__Host-pisync"
"""The prefix has browsers take it from this very host alone, and over HTTPS alone."""
TRIES_OF_ADDRESS: Final = 10
TRIES_OF_ALL: Final = 100
"""Sign-ins a minute."""
_PREFIX: Final = "pss_"
_SECRET_CHARS: Final = len(_PREFIX) + 43
_MINUTE_S: Final = 60.0
_ALL: Final = "all"
_AWAY: Final = "-away"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session that is open. Its repr shows no secret."""

    secret: str
    token: Token

    def __repr__(self) -> str:
        return f"Session(token={self.token!r})"


class Sessions:
    """Opens, finds and closes sessions. Used on the event loop."""

    def __init__(
        self,
        tokens: TokenDirectory,
        intake: Intake,
        *,
        required: bool,
        now_ms: Callable[[], int],
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """`required` is False where anyone may do anything: then pages need no session."""
        self.required = required
        self._tokens = tokens
        self._intake = intake
        self._now_ms = now_ms
        self._moving: set[int] = set()
        self._process_key = secrets.token_hex(32)
        self._tries = Rates(every_s=_MINUTE_S / TRIES_OF_ADDRESS, at_once=TRIES_OF_ADDRESS, clock=clock, random=random)
        self._noted = Rates(every_s=_MINUTE_S, at_once=1, clock=clock, random=random)
        self._all_tries = Rates(every_s=_MINUTE_S / TRIES_OF_ALL, at_once=TRIES_OF_ALL, clock=clock, random=random)

    async def find(self, headers: Mapping[bytes, bytes], *, secure: bool) -> Session | None:
        """Return the session that the request's cookie names, and note that it is used. Raises StoreUnusable."""
        secret = cookie_of(headers, SECURE_COOKIE if secure else COOKIE)
        if secret is None or len(secret) != _SECRET_CHARS or not secret.startswith(_PREFIX):
            return None
        token = await self._tokens.look_up(secret)
        now = self._now_ms()
        if token is None or not is_session(token) or has_ended(token, now):
            return None
        self._note_use(token, now)
        return Session(secret=secret, token=token)

    def csrf(self, session: Session | None) -> str:
        """Return the value that each form of the session's pages carries."""
        key = self._process_key if session is None else session.secret
        return hmac.digest(key.encode(), b"csrf", "sha256").hex()

    async def sign_in(self, token: str, address: str | None) -> Session:
        """Open a session with an admin's or viewer's token. Raises SignInRefused, Problem 429, Overloaded."""
        self.count_try(address)
        return await self._open(address, parent_hash=token_hash(token.strip()))

    async def sign_in_as(self, name: str, scope: Scope, address: str | None) -> Session:
        """Open a session for a person whom an identity provider vouches for. Raises Overloaded, StoreUnusable."""
        return await self._open(address, scope=scope, label=name)

    def count_try(self, address: str | None) -> None:
        """Count a sign-in. Raises Problem 429 when there were too many, from there or from everywhere."""
        self._tries.spend(address or "")
        self._all_tries.spend(_ALL)

    async def _open(
        self,
        address: str | None,
        *,
        parent_hash: str | None = None,
        scope: Scope | None = None,
        label: str | None = None,
    ) -> Session:
        secret = _PREFIX + secrets.token_urlsafe(32)
        opening = SessionOpen(
            token_hash=token_hash(secret),
            at_ms=self._now_ms(),
            parent_hash=parent_hash,
            scope=scope,
            label=label,
            address=address,
        )
        try:
            row: Token = await self._intake.submit(opening)
        except SignInRefused as error:
            self.note_refusal(address, str(error))
            raise
        self._tokens.put(row)
        return Session(secret=secret, token=row)

    def note_refusal(self, address: str | None, reason: str) -> None:
        """Log that a sign-in was refused, and note it in the audit log, once a minute for an address."""
        log.warning("a sign-in was refused", extra=fields(client=address, reason=reason))
        try:
            self._noted.spend(address or "")
        except Problem:
            return
        by = Actor(name="unknown", address=address)
        self._submit(AuditNote(by=by, act="session.refuse", at_ms=self._now_ms(), detail={"reason": reason}))

    async def close(self, session: Session, caller: Caller) -> None:
        """Sign out. Raises Overloaded, StoreUnusable."""
        closing = SessionClose(session_id=session.token.id, at_ms=self._now_ms(), by=caller.actor)
        row: Token | None = await self._intake.submit(closing)
        if row is not None:
            self._tokens.put(row)

    def _note_use(self, token: Token, now_ms: int) -> None:
        """Move the idle end, in the background; if that fails, the next use moves it."""
        if idle_end(token, now_ms) is None or token.id in self._moving:
            return
        self._moving.add(token.id)

        def moved(row: Token | None) -> None:
            self._moving.discard(token.id)
            if row is not None:
                self._tokens.put(row)

        self._submit(SessionUse(session_id=token.id, at_ms=now_ms), moved)

    def _submit(self, submission: Submission, done: Callable[[Any], None] = lambda _: None) -> None:
        """Store something in the background; call `done` with its outcome, None if it could not be stored."""
        try:
            future = self._intake.submit(submission)
        except Overloaded:
            done(None)
            return

        def settled(future: "asyncio.Future[Any]") -> None:
            failed = future.cancelled() or future.exception() is not None
            done(None if failed else future.result())

        future.add_done_callback(settled)


def cookie_header(secret: str, *, secure: bool) -> tuple[bytes, bytes]:
    """Return the header that gives a browser its session; an empty `secret` takes it away."""
    name = SECURE_COOKIE if secure else COOKIE
    return _set_cookie(name, secret, LASTS_MS // 1000, "Strict", secure=secure)


def away_cookie_header(value: str, age_s: int, *, secure: bool) -> tuple[bytes, bytes]:
    """Return the header with what a browser must bring back from an identity provider; an empty `value` takes it
    away. Browsers send it when another site leads here, which they do not with a session."""
    name = (SECURE_COOKIE if secure else COOKIE) + _AWAY
    return _set_cookie(name, value, age_s, "Lax", secure=secure)


def away_cookie(headers: Mapping[bytes, bytes], *, secure: bool) -> str:
    """Return what a browser brought back from an identity provider; empty if it is nothing."""
    return cookie_of(headers, (SECURE_COOKIE if secure else COOKIE) + _AWAY) or ""


def _set_cookie(name: str, value: str, age_s: int, same_site: str, *, secure: bool) -> tuple[bytes, bytes]:
    age = age_s if value else 0
    text = f"{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite={same_site}{'; Secure' if secure else ''}"
    return b"set-cookie", text.encode()


def cookie_of(headers: Mapping[bytes, bytes], name: str) -> str | None:
    """Return the value of a cookie; None if it was not sent."""
    pairs = (part.strip().partition("=") for part in headers.get(b"cookie", b"").decode("latin-1").split(";"))
    return next((value for key, _, value in pairs if key == name), None)
