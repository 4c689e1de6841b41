"""Sessions of people: opened with a token, kept open by use, closed by sign-out and by the end of the token.

A session is a row of `tokens` with `session_until_ms`. It has the scope and the sites of the token that opened it, so
that everything which holds for tokens holds for it.
"""

from typing import Final

from msgspec.structs import replace

from pisync_receiver.domain.rows import Token
from pisync_receiver.domain.state import State
from pisync_receiver.domain.submissions import Actor, SessionClose, SessionOpen, SessionUse
from pisync_receiver.errors import SignInRefused

IDLE_MS: Final = 3_600_000
"""A session ends when it was not used for this long."""
LASTS_MS: Final = 12 * IDLE_MS
"""A session ends after this time, however busy it is."""
MOVE_MS: Final = 60_000
"""Its idle end moves at most this often, so that reading a page is not a write."""
OPEN_AT_ONCE: Final = 20
"""Sessions of one token; the next one ends the oldest."""
KEPT_MS: Final = 7 * 24 * IDLE_MS
"""How long a session's row is kept after its end."""
SCOPES: Final = ("admin", "viewer")
_UNKNOWN: Final = "this token is unknown or has ended; ask an admin for a new one"


def is_session(token: Token) -> bool:
    """Whether this row is a session and not a token."""
    return token.session_until_ms is not None


def has_ended(token: Token, now_ms: int) -> bool:
    """Whether a token or session works no longer."""
    return any(end is not None and end <= now_ms for end in (token.revoked_ms, token.expires_ms))


def idle_end(session: Token, now_ms: int) -> int | None:
    """Return when a session ends that is used now; None unless the end moves by MOVE_MS at least."""
    end_ms = min(now_ms + IDLE_MS, session.session_until_ms or 0)
    return end_ms if end_ms - (session.expires_ms or 0) >= MOVE_MS else None


def open_session(state: State, act: SessionOpen) -> Token | SignInRefused:
    if (known := state.tokens.get(act.token_hash)) is not None:
        return known  # a repeat of this very submission
    until_ms = act.at_ms + LASTS_MS
    parent: Token | None = None
    scope: str | None = act.scope
    label, sites = act.label, None
    if act.parent_hash is not None:
        parent = state.tokens.get(act.parent_hash)
        if parent is None or is_session(parent) or has_ended(parent, act.at_ms):
            return SignInRefused(_UNKNOWN)
        scope, label, sites = parent.scope, parent.label, parent.sites
        until_ms = min([until_ms, *(end for end in (parent.revoked_ms, parent.expires_ms) if end is not None)])
        for session in sessions_of(state, parent.id)[: 1 - OPEN_AT_ONCE]:
            state.tokens[session.token_hash] = replace(session, revoked_ms=act.at_ms)
    if scope not in SCOPES:
        return SignInRefused(f"this is a {scope} token; sign in with an admin's or a viewer's")
    session = Token(
        scope=scope,
        token_hash=act.token_hash,
        label=label,
        sites=sites,
        created_ms=act.at_ms,
        expires_ms=min(act.at_ms + IDLE_MS, until_ms),
        parent_id=None if parent is None else parent.id,
        session_until_ms=until_ms,
    )
    state.tokens[act.token_hash] = session
    state.changes.sessions_before_ms = act.at_ms - KEPT_MS
    name = label or ("anyone" if parent is None else f"{scope} token {parent.id}")
    by = Actor(name=name, token_id=session.parent_id, address=act.address)
    state.note(by, "session.open", "session", act.at_ms, {"scope": scope}, made=act.token_hash)
    return session


def use_session(state: State, act: SessionUse) -> Token | None:
    session = _session(state, act.session_id)
    if session is None or has_ended(session, act.at_ms):
        return None
    if (end_ms := idle_end(session, act.at_ms)) is not None:
        session = state.tokens[session.token_hash] = replace(session, expires_ms=end_ms)
    return session


def close_session(state: State, act: SessionClose) -> Token | None:
    session = _session(state, act.session_id)
    if session is not None and session.revoked_ms is None:
        session = state.tokens[session.token_hash] = replace(session, revoked_ms=act.at_ms)
        state.note(act.by, "session.close", f"session {session.id}", act.at_ms)
    return session


def end_sessions(state: State, token_id: int, end_ms: int, *, revoke: bool) -> None:
    """End the sessions of a token together with it: now, or at the end that it was given."""
    for session in sessions_of(state, token_id):
        if revoke:
            ended = replace(session, revoked_ms=end_ms)
        else:
            until_ms = min(end_ms, session.session_until_ms or end_ms)
            ended = replace(
                session, session_until_ms=until_ms, expires_ms=min(until_ms, session.expires_ms or until_ms)
            )
        state.tokens[session.token_hash] = ended


def sessions_of(state: State, token_id: int) -> list[Token]:
    """The sessions of a token that were not revoked, oldest first."""
    found = [token for token in state.tokens.values() if token.parent_id == token_id and token.revoked_ms is None]
    return sorted(found, key=lambda session: (session.id == 0, session.id))


def _session(state: State, session_id: int) -> Token | None:
    found = (token for token in state.tokens.values() if token.id == session_id > 0 and is_session(token))
    return next(found, None)
