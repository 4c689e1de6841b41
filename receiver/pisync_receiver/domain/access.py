"""Who may speak for whom, and what admins change: tokens, enrollment codes, devices."""

import json
from collections.abc import Sequence
from dataclasses import replace as with_fields
from typing import Final

from msgspec.structs import replace

from pisync_receiver.domain import sessions
from pisync_receiver.domain.facts import Facts, Plan
from pisync_receiver.domain.records import time_of
from pisync_receiver.domain.rows import Device, EnrollmentCode, Token
from pisync_receiver.domain.sites import moved
from pisync_receiver.domain.state import State
from pisync_receiver.domain.submissions import (
    Act,
    Actor,
    AuditNote,
    CodeBatch,
    CodeCreate,
    CodeEnd,
    CodesMade,
    DeviceChange,
    Enroll,
    Enrolled,
    Outcome,
    SessionClose,
    SessionOpen,
    SessionUse,
    TokenCreate,
    TokenRefused,
    TokenRevoke,
)
from pisync_receiver.errors import DeviceIdTaken, EnrollmentRefused, UnknownCode, UnknownDevice, UnknownToken

ENDING_KEPT: Final = 4
"""Earlier tokens of a device that work during the overlap, however often it enrolls again."""


def planned(acts: Sequence[Act], plan: Plan) -> Plan:
    """`plan` with what the acts need to know."""
    known_devices: set[str] = set()
    tokens_of: set[str] = set()
    token_hashes: set[str] = set()
    token_ids: set[int] = set()
    code_hashes: set[str] = set()
    code_ids: set[int] = set()
    for act in acts:
        match act:
            case TokenCreate():
                token_hashes.add(act.token_hash)
                token_ids.update(() if act.replaces is None else (act.replaces,))
                known_devices.update(() if act.device_id is None else (act.device_id,))
            case TokenRevoke() | TokenRefused():
                token_ids.add(act.token_id)
            case SessionOpen():
                token_hashes.add(act.token_hash)
                token_hashes.update(() if act.parent_hash is None else (act.parent_hash,))
            case SessionUse() | SessionClose():
                token_ids.add(act.session_id)
            case CodeCreate():
                code_hashes.add(act.code_hash)
            case CodeBatch():
                code_hashes.update(code.code_hash for code in act.codes)
            case CodeEnd():
                code_ids.add(act.code_id)
            case Enroll():
                code_hashes.add(act.code_hash)
                token_hashes.add(act.token_hash)
                known_devices.add(act.device_id or act.fallback_device_id)
                tokens_of.add(act.device_id or act.fallback_device_id)
            case DeviceChange():
                known_devices.add(act.device_id)
                tokens_of.update((act.device_id,) if act.retire or act.revoke else ())
    return with_fields(
        plan,
        known_devices=sorted(known_devices - set(plan.devices)),
        tokens_of=sorted(tokens_of),
        token_hashes=sorted(token_hashes),
        token_ids=sorted(token_ids),
        code_hashes=sorted(code_hashes),
        code_ids=sorted(code_ids),
    )


def bound_devices(facts: Facts, acts: Sequence[Act]) -> tuple[Sequence[str], Sequence[str]]:
    """Devices that the acts turn out to concern, named by codes or owners of refused tokens; and the devices among them
    whose tokens are needed."""
    made = {act.code_hash: act.device_id for act in reversed(acts) if isinstance(act, CodeCreate)}  # the first counts
    codes = made | {code.code_hash: code.device_id for code in facts.codes}
    named = {codes.get(act.code_hash) for act in acts if isinstance(act, Enroll)} - {None}
    refused_ids = {act.token_id for act in acts if isinstance(act, TokenRefused)}
    refused = {token.device_id for token in facts.tokens if token.id in refused_ids} - {None}
    devices = [device for device in sorted(filter(None, named | refused)) if device not in facts.devices]
    return devices, sorted(filter(None, named))


def ending_tokens(facts: Facts, acts: Sequence[Act]) -> Sequence[int]:
    """Tokens whose sessions the acts may end."""
    opening = {act.parent_hash for act in acts if isinstance(act, SessionOpen)}
    ids = {token.id for token in facts.tokens if token.token_hash in opening}
    ids |= {act.token_id for act in acts if isinstance(act, TokenRevoke)}
    ids |= {act.replaces for act in acts if isinstance(act, TokenCreate) and act.replaces is not None}
    return sorted(ids)


def decide_act(state: State, act: Act) -> Outcome:
    match act:
        case TokenCreate():
            return _create_token(state, act)
        case TokenRevoke():
            return _revoke_token(state, act)
        case TokenRefused():
            _note_refusal(state, act)
            return None
        case SessionOpen():
            return sessions.open_session(state, act)
        case SessionUse():
            return sessions.use_session(state, act)
        case SessionClose():
            return sessions.close_session(state, act)
        case CodeCreate():
            return _create_code(state, act)
        case CodeBatch():
            return CodesMade(codes=tuple(_create_code(state, code) for code in act.codes))
        case CodeEnd():
            return _end_code(state, act)
        case Enroll():
            return _enroll(state, act)
        case DeviceChange():
            return _change_device(state, act)
        case AuditNote():
            state.note(act.by, act.act, act.target, act.at_ms, act.detail)
            return None


# Tokens.


def _create_token(state: State, act: TokenCreate) -> Token | UnknownToken:
    if (known := state.tokens.get(act.token_hash)) is not None:
        return known
    if act.replaces is not None:
        replaced = _token(state, act.replaces)
        if replaced is None or replaced.scope != act.scope or sessions.is_session(replaced):
            return UnknownToken(f"there is no {act.scope} token {act.replaces}; nothing was changed")
        if act.replaced_until_ms is not None:
            _end_token(state, replaced, act.replaced_until_ms)
            sessions.end_sessions(state, replaced.id, act.replaced_until_ms, revoke=False)
    if act.device_id is not None and state.device(act.device_id) is None:
        state.put_device(Device(device_id=act.device_id))
    state.note(
        act.by,
        "token.create" if act.replaces is None else "token.rotate",
        "token",
        act.at_ms,
        {
            "scope": act.scope,
            "label": act.label,
            "sites": act.sites,
            "device_id": act.device_id,
            "expires_at": time_of(act.expires_ms),
            "replaces": act.replaces,
            "replaced_until": time_of(act.replaced_until_ms),
        },
        made=act.token_hash,
    )
    return _put_token(
        state,
        Token(
            scope=act.scope,
            token_hash=act.token_hash,
            device_id=act.device_id,
            label=act.label,
            sites=None if act.sites is None else json.dumps(act.sites, ensure_ascii=False),
            created_ms=act.at_ms,
            expires_ms=act.expires_ms,
        ),
    )


def _revoke_token(state: State, act: TokenRevoke) -> Token | UnknownToken:
    if (token := _token(state, act.token_id)) is None:
        return UnknownToken(f"there is no token {act.token_id}; `pisync-receiver token list` shows them all")
    if token.revoked_ms is not None:
        return token
    sessions.end_sessions(state, token.id, act.at_ms, revoke=True)
    about = {"scope": token.scope, "label": token.label, "device_id": token.device_id}
    state.note(act.by, "token.revoke", f"token {token.id}", act.at_ms, about)
    return _put_token(state, replace(token, revoked_ms=act.at_ms))


def _note_refusal(state: State, act: TokenRefused) -> None:
    if (token := _token(state, act.token_id)) is None:
        return
    _put_token(state, replace(token, last_refused_ms=max(act.at_ms, token.last_refused_ms or 0)))
    if token.device_id is not None and (device := state.device(token.device_id)) is not None:
        state.put_device(replace(device, last_refused_ms=max(act.at_ms, device.last_refused_ms or 0)))


def _token(state: State, token_id: int) -> Token | None:
    return next((token for token in state.tokens.values() if token.id == token_id and token_id > 0), None)


def _put_token(state: State, token: Token) -> Token:
    state.tokens[token.token_hash] = token
    return token


def _end_token(state: State, token: Token, end_ms: int) -> Token:
    """Give a token an end, unless it has an earlier one."""
    return _put_token(state, replace(token, expires_ms=min(end_ms, token.expires_ms or end_ms)))


def _end_tokens(state: State, device_id: str, act: Enroll) -> tuple[Token, ...]:
    """End the tokens that the device had: the newest few after the overlap, any other now."""
    tokens = _tokens_of(state, device_id)
    for token in tokens[:-ENDING_KEPT]:
        _put_token(state, replace(token, revoked_ms=act.at_ms))
    for token in tokens[-ENDING_KEPT:]:
        _end_token(state, token, act.at_ms + act.overlap_ms)
    return tuple(state.tokens[token.token_hash] for token in tokens)


def _tokens_of(state: State, device_id: str) -> list[Token]:
    """The device's tokens that are not revoked, oldest first; new tokens have no id yet."""
    tokens = [token for token in state.tokens.values() if token.device_id == device_id and token.revoked_ms is None]
    return sorted(tokens, key=lambda token: (token.id == 0, token.id))


# Enrollment codes.


def _create_code(state: State, act: CodeCreate) -> EnrollmentCode:
    if (known := state.codes.get(act.code_hash)) is not None:
        return known
    code = EnrollmentCode(
        code_hash=act.code_hash,
        label=act.label,
        created_ms=act.at_ms,
        expires_ms=act.expires_ms,
        uses=act.uses,
        uses_left=act.uses,
        site=act.site,
        device_id=act.device_id,
    )
    state.codes[act.code_hash] = code
    state.note(
        act.by,
        "code.create",
        "code",
        act.at_ms,
        {
            "label": act.label,
            "uses": act.uses,
            "site": act.site,
            "device_id": act.device_id,
            "expires_at": time_of(act.expires_ms),
        },
        made=act.code_hash,
    )
    return code


def _end_code(state: State, act: CodeEnd) -> EnrollmentCode | UnknownCode:
    code = next((code for code in state.codes.values() if code.id == act.code_id and act.code_id > 0), None)
    if code is None:
        return UnknownCode(f"there is no enrollment code {act.code_id}; `pisync-receiver enrollment list` shows them")
    if code.ended_ms is None:
        code = state.codes[code.code_hash] = replace(code, ended_ms=act.at_ms)
        state.note(act.by, "code.end", f"code {code.id}", act.at_ms, {"label": code.label, "site": code.site})
    return code


def _enroll(state: State, act: Enroll) -> Enrolled | EnrollmentRefused | DeviceIdTaken:
    """Let a device in. A refusal uses nothing up."""
    code = state.codes.get(act.code_hash)
    if code is None or code.ended_ms is not None or code.expires_ms <= act.at_ms:
        return EnrollmentRefused("this code is unknown, expired, ended or used up; ask an admin for a new one")
    if code.device_id is not None and act.device_id not in (None, code.device_id):
        return EnrollmentRefused("this code was made for another device id; leave the id out, or ask for another code")
    if code.site is not None and act.site not in (None, code.site):
        return EnrollmentRefused(
            f"this code is for the site {code.site!r}, and the device was prepared for {act.site!r}; correct the site "
            "in its enrollment file, or make a code for that site"
        )
    device_id = code.device_id or act.device_id or act.fallback_device_id
    if (known := state.tokens.get(act.token_hash)) is not None:
        return Enrolled(device_id=known.device_id or device_id, token=known)  # a repeat of this very submission
    device = state.device(device_id)
    again = device is not None and device.code_id == code.id
    if not again and code.uses_left <= 0:
        return EnrollmentRefused("this code is unknown, expired, ended or used up; ask an admin for a new one")
    if not again and device is not None and code.device_id is None:
        return DeviceIdTaken(
            f"there is a device {device_id!r} already; choose another id, or, if this is the same device, have an "
            f"admin make a code for it: pisync-receiver enrollment create --device-id {device_id}"
        )
    if not again and device is not None and _came_to_another_site(device, code):
        return DeviceIdTaken(
            f"{device_id!r} enrolled at another site after this code was made; ask an admin of both sites for a code"
        )
    if not again:
        state.codes[code.code_hash] = replace(code, uses_left=code.uses_left - 1)
    _admit(state, device or Device(device_id=device_id), code, act)
    by = Actor(name=f"enrollment code {code.id}", address=act.address)
    site = None if (admitted := state.device(device_id)) is None else admitted.site
    state.note(by, "device.enroll", f"device {device_id}", act.at_ms, {"site": site, "again": device is not None})
    ending = _end_tokens(state, device_id, act)
    token = Token(scope="device", token_hash=act.token_hash, device_id=device_id, created_ms=act.at_ms)
    return Enrolled(device_id=device_id, token=_put_token(state, token), ending=ending)


def _came_to_another_site(device: Device, code: EnrollmentCode) -> bool:
    """Whether the code's maker, who may be an admin of the code's site alone, cannot have meant this device."""
    elsewhere = code.site is not None and device.site not in (None, code.site)
    return elsewhere and (device.enrolled_ms or 0) > code.created_ms


def _admit(state: State, device: Device, code: EnrollmentCode, act: Enroll) -> None:
    """The code's site wins; the device's own only gives a site to a device without one."""
    site = code.site or device.site or act.site
    if site is not None and site != device.site:
        device = moved(device, site, act.at_ms)
    changed = replace(device, enrolled_ms=act.at_ms, code_id=code.id or None, retired_ms=None, changed_ms=act.at_ms)
    state.put_device(changed)


# Devices.


def _change_device(state: State, act: DeviceChange) -> Device | UnknownDevice:
    device = state.device(act.device_id)
    if device is None:
        return UnknownDevice(f"device {act.device_id!r} has not enrolled or reported here; nothing was changed")
    before = device
    if act.site is not None and (act.site != device.site or act.site_since_ms is not None):
        device = moved(device, act.site, act.at_ms if act.site_since_ms is None else act.site_since_ms)
    if act.label is not None:
        device = replace(device, label=act.label)
    if act.retire or act.revoke:
        tokens = _tokens_of(state, act.device_id)
        for token in tokens:
            _put_token(state, replace(token, revoked_ms=act.at_ms))
        if act.revoke:
            state.note(act.by, "device.revoke", f"device {device.device_id}", act.at_ms, {"tokens": len(tokens)})
    if act.ask_for_sync:
        device = replace(device, sync_asked_ms=device.sync_asked_ms or act.at_ms)
        state.note(act.by, "device.sync", f"device {device.device_id}", act.at_ms)
    if act.retire:
        retired_ms = act.at_ms if device.retired_ms is None else device.retired_ms
        device = replace(device, retired_ms=retired_ms, sync_asked_ms=None)
    elif act.retire is False:
        device = replace(device, retired_ms=None)
    device = replace(device, changed_ms=act.at_ms)
    state.put_device(device)
    if changed := _changes(before, device):
        state.note(act.by, "device.change", f"device {device.device_id}", act.at_ms, changed)
    return device


def _changes(before: Device, after: Device) -> dict[str, object]:
    """What an admin changed, by name: the value before and after."""
    values = {
        "site": (before.site, after.site),
        "site_since": (time_of(before.site_since_ms), time_of(after.site_since_ms)),
        "label": (before.label, after.label),
        "retired": (before.retired_ms is not None, after.retired_ms is not None),
    }
    return {name: [*pair] for name, pair in values.items() if pair[0] != pair[1]}
