"""What an admin does by command: tokens and enrollment codes. One code path, whether the receiver serves or not.

Messages (see `control`) and their results:
- `token.create` role, replaces, overlap_ms -> id, token, replaced_ends
- `token.revoke` id -> id
- `enrollment.create` uses, expires_ms, site, device_id -> id, code, uses, expires_at
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pisync_common.times import format_ms, now_ms
from pisync_receiver.auth import Tokens, TokenSource, new_token, token_hash
from pisync_receiver.codes import new_code, normalized
from pisync_receiver.control import ControlError, Do
from pisync_receiver.store import (
    EnrollmentCreate,
    EnrollmentRow,
    Store,
    Submission,
    TokenCreate,
    TokenExpire,
    TokenRevoke,
    TokenRow,
)

Submit = Callable[[Submission], Awaitable[object]]
"""Hands a submission to the one writer; its outcome, or what the store raised."""


def alone(open_store: Callable[[], Store]) -> Do:
    """`Administration.do` on a store of its own, opened for one message, where nothing else runs on the event loop.

    The caller holds what has to be held for writing.
    """

    async def do(message: Mapping[str, Any]) -> Mapping[str, Any]:
        store = open_store()

        async def submit(submission: Submission) -> object:
            (outcome,) = store.write([submission])
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        try:
            return await Administration(store, tokens=Tokens(), submit=submit, now_ms=now_ms).do(message)
        finally:
            store.close()

    return do


class Administration:
    """Carries out messages. Changes reach the database through `submit` and callers' tokens through `tokens`."""

    def __init__(self, store: Store, *, tokens: TokenSource, submit: Submit, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._tokens = tokens
        self._submit = submit
        self._now_ms = now_ms
        self._known: Mapping[str, Do] = {
            "token.create": self.create_token,
            "token.revoke": self.revoke_token,
            "enrollment.create": self.create_enrollment,
        }

    async def do(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Carry out one message, made by the same program's CLI. Raises PiSyncError."""
        name = message.get("do")
        if not isinstance(name, str) or name not in self._known:
            raise ControlError("the receiver that serves does not know this command; is it of another version?")
        return await self._known[name](message)

    async def create_token(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        now, replaced = self._now_ms(), message["replaces"]
        if replaced is not None:
            self._check_replaceable(replaced)
        secret = new_token(message["role"])
        row = await self._row(TokenCreate(role=message["role"], token_hash=token_hash(secret), created_ms=now))
        ends = None
        if replaced is not None:
            old = await self._row(TokenExpire(token_id=replaced, expires_ms=now + message["overlap_ms"]))
            ends = old.expires_ms if old.revoked_ms is None else old.revoked_ms
        return {"id": row.id, "token": secret, "replaced_ends": None if ends is None else format_ms(ends)}

    async def revoke_token(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        row = await self._row(TokenRevoke(token_id=message["id"], at_ms=self._now_ms()))
        return {"id": row.id}

    async def create_enrollment(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        now, code = self._now_ms(), new_code()
        made = await self._submit(
            EnrollmentCreate(
                code_hash=token_hash(normalized(code)),
                created_ms=now,
                expires_ms=now + message["expires_ms"],
                uses=message["uses"],
                site=message["site"],
                device_id=message["device_id"],
            )
        )
        assert isinstance(made, EnrollmentRow)
        return {"id": made.id, "code": code, "uses": made.uses_left, "expires_at": format_ms(made.expires_ms)}

    def _check_replaceable(self, token_id: str) -> None:
        if all(row.id != token_id or row.role == "device" for row in self._store.all_tokens()):
            raise ControlError(
                f"there is no admin's or viewer's token {token_id}; nothing was changed; `token list` shows the ids"
            )

    async def _row(self, submission: TokenCreate | TokenExpire | TokenRevoke) -> TokenRow:
        row = await self._submit(submission)
        assert isinstance(row, TokenRow)
        self._tokens.put(row)
        return row
