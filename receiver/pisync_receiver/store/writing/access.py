"""Tokens and enrollment codes into the database: who may speak for whom."""

from typing import Any

from pisync_receiver.errors import DeviceIdTaken, EnrollmentRefused, UnknownToken
from pisync_receiver.store.types import (
    Enroll,
    Enrolled,
    EnrollmentCreate,
    EnrollmentRow,
    TokenCreate,
    TokenExpire,
    TokenRefused,
    TokenRevoke,
    TokenRow,
)
from pisync_receiver.store.writing.states import Device, Group
from pisync_receiver.store.writing.tables import Row


def create_token(group: Group, new: TokenCreate) -> TokenRow:
    row = (new.role, new.token_hash, new.device_id, new.label, new.created_ms, new.expires_ms)
    group.tables.put("insert_token", [row])
    if new.device_id is not None:
        group.device(new.device_id).exists = True
    return token_of(_there(group.tables.one("token_by_hash", new.token_hash)))


def revoke_token(group: Group, revoke: TokenRevoke) -> TokenRow | UnknownToken:
    if (number := _number(revoke.token_id)) is not None:
        group.tables.put("revoke_token", [(revoke.at_ms, number)])
        if (token := _token(group, number)) is not None:
            return token
    return _unknown(revoke.token_id)


def expire_token(group: Group, expire: TokenExpire) -> TokenRow | UnknownToken:
    if (number := _number(expire.token_id)) is not None:
        group.tables.put("end_token", [(expire.expires_ms, number)])
        if (token := _token(group, number)) is not None:
            return token
    return _unknown(expire.token_id)


def refuse_token(group: Group, refused: TokenRefused) -> None:
    number = _number(refused.token_id)
    token = None if number is None else _token(group, number)
    if token is None:
        return
    group.tables.put("refuse_token", [(refused.at_ms, number)])
    if token.device_id is not None:
        device = group.device(token.device_id)
        device.last_refused_ms = max(refused.at_ms, device.last_refused_ms or 0)


def create_enrollment(group: Group, new: EnrollmentCreate) -> EnrollmentRow:
    row = (new.code_hash, new.created_ms, new.expires_ms, new.uses, new.site, new.device_id)
    group.tables.put("insert_enrollment", [row])
    return enrollment_of(_there(group.tables.one("enrollment", new.code_hash)))


def enroll(group: Group, wish: Enroll) -> Enrolled | EnrollmentRefused | DeviceIdTaken:
    """A refusal uses nothing up."""
    row = group.tables.one("enrollment", wish.code_hash)
    code = None if row is None else enrollment_of(row)
    if code is None or code.uses_left <= 0 or code.expires_ms <= wish.at_ms:
        return EnrollmentRefused("this code is unknown, expired or used up; ask an admin for a new one")
    if code.device_id is not None and wish.device_id not in (None, code.device_id):
        return EnrollmentRefused("this code was made for another device id; leave the id out, or ask for another code")
    device_id = code.device_id or wish.device_id or wish.fallback_device_id
    device = group.device(device_id)
    if device.exists and code.device_id is None:
        return DeviceIdTaken(
            f"there is a device {device_id!r} already; choose another id, or, if this is the same device, have an "
            f"admin make a code for it: pisync-receiver enrollment create --device-id {device_id}"
        )
    group.tables.put("use_enrollment", [(int(code.id),)])
    _admit(device, code, wish.at_ms)
    ending = _end_tokens(group, device_id, wish)
    token = TokenCreate(role="device", token_hash=wish.token_hash, created_ms=wish.at_ms, device_id=device_id)
    return Enrolled(device_id=device_id, token=create_token(group, token), ending=ending)


def token_of(row: tuple[Any, ...]) -> TokenRow:
    number, role, token_hash, device_id, label, created_ms, expires_ms, revoked_ms, last_refused_ms = row
    return TokenRow(
        id=str(number),
        role=role,
        token_hash=token_hash,
        device_id=device_id,
        label=label,
        created_ms=created_ms,
        expires_ms=expires_ms,
        revoked_ms=revoked_ms,
        last_refused_ms=last_refused_ms,
    )


def enrollment_of(row: tuple[Any, ...]) -> EnrollmentRow:
    number, created_ms, expires_ms, uses_left, site, device_id = row
    return EnrollmentRow(
        id=str(number),
        created_ms=created_ms,
        expires_ms=expires_ms,
        uses_left=uses_left,
        site=site,
        device_id=device_id,
    )


def _admit(device: Device, code: EnrollmentRow, at_ms: int) -> None:
    device.exists = True
    device.enrolled_ms = at_ms
    device.site = code.site if code.site is not None else device.site


def _end_tokens(group: Group, device_id: str, wish: Enroll) -> tuple[TokenRow, ...]:
    live = group.tables.all("live_tokens", device_id, wish.at_ms)
    end_ms = wish.at_ms + wish.overlap_ms
    for (number,) in live:
        group.tables.put("end_token", [(end_ms, number)])
    ended = (_token(group, number) for (number,) in live)
    return tuple(token for token in ended if token is not None)


def _token(group: Group, number: int) -> TokenRow | None:
    row = group.tables.one("token", number)
    return None if row is None else token_of(row)


def _there(row: Row | None) -> Row:
    """What was just put in."""
    assert row is not None
    return row


def _unknown(token_id: str) -> UnknownToken:
    return UnknownToken(f"there is no token {token_id!r}; `pisync-receiver token list` shows them all")


def _number(token_id: str) -> int | None:
    """Ids are the row's number; anything else names no token."""
    return int(token_id) if token_id.isascii() and token_id.isdigit() and len(token_id) < 19 else None
