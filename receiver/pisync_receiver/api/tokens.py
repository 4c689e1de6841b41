"""Tokens: create, list, revoke, rotate. Only an admin of all sites may."""

from typing import Final, cast

from pisync_receiver.api.decoding import decode_body
from pisync_receiver.api.schemas import NewToken, Rotation, TokenRequest
from pisync_receiver.domain.records import TokenRecord, token_record
from pisync_receiver.domain.rows import Token
from pisync_receiver.domain.submissions import Scope, TokenCreate, TokenRevoke
from pisync_receiver.errors import Problem
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access, new_token, token_hash
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer, json_answer
from pisync_receiver.http.routing import route

TOKENS = Query(
    params=(
        params.options("scope", "Only tokens of this scope", ("admin", "viewer", "metrics", "device")),
        params.identifier("device_id", "Only tokens of this device"),
        params.flag("sessions", "Sessions too (true): a person who is signed in, and the token that was used"),
    )
)


@route("POST", "/api/tokens", Access.CHIEF, answer=NewToken, status=201, request_body=TokenRequest)
async def create_token(request: Request) -> Answer:
    """Create a token."""
    wanted = decode_body(TokenRequest, await request.body())
    if (wanted.scope == "device") != (wanted.device_id is not None):
        raise Problem(400, "invalid_request", "device_id: required for the scope device, and only there")
    if wanted.sites is not None and wanted.scope not in ("admin", "viewer"):
        raise Problem(400, "invalid_request", "sites: only tokens of the scopes admin and viewer can be limited")
    secret = new_token(wanted.scope)
    now = request.services.now_ms()
    create = TokenCreate(
        scope=wanted.scope,
        token_hash=token_hash(secret),
        at_ms=now,
        device_id=wanted.device_id,
        label=wanted.label,
        sites=None if wanted.sites is None else tuple(wanted.sites),
        expires_ms=None if wanted.expires_in_s is None else now + wanted.expires_in_s * 1000,
        by=request.caller.actor,
    )
    return _created(request, secret, await request.services.intake.submit(create))


@route("GET", "/api/tokens", Access.CHIEF, answer=list[TokenRecord], query=TOKENS)
async def list_tokens(request: Request) -> Answer:
    """Every token, without the secrets, which are not kept."""
    query = request.query
    return json_answer(
        [
            token
            for token in await request.services.store.tokens(sessions=bool(query["sessions"]))
            if query["scope"] in (None, token.scope) and query["device_id"] in (None, token.device_id)
        ]
    )


@route("POST", "/api/tokens/{token_id}/revoke", Access.CHIEF, answer=TokenRecord, problems=(404, 503))
async def revoke_token(request: Request) -> Answer:
    """End a token and its sessions now. Other receivers refuse them within 2 seconds."""
    number, now = path_number(request, "token_id"), request.services.now_ms()
    revoke = TokenRevoke(token_id=number, at_ms=now, by=request.caller.actor)
    token: Token = await request.services.intake.submit(revoke)
    request.services.tokens.clear()  # its sessions are revoked too
    return json_answer(token_record(token))


@route(
    "POST",
    "/api/tokens/{token_id}/rotate",
    Access.CHIEF,
    answer=NewToken,
    status=201,
    request_body=Rotation,
    problems=(404,),
)
async def rotate_token(request: Request) -> Answer:
    """Create a token that takes over from another, which works on for the overlap."""
    rotation = decode_body(Rotation, await request.body())
    services, now = request.services, request.services.now_ms()
    old = await known_token(request, path_number(request, "token_id"))
    scope = cast(Scope, old.scope)
    secret = new_token(scope)
    create = TokenCreate(
        scope=scope,
        token_hash=token_hash(secret),
        at_ms=now,
        device_id=old.device_id,
        label=old.label if rotation.label is None else rotation.label,
        sites=None if old.sites is None else tuple(old.sites),
        replaces=old.id,
        replaced_until_ms=now + rotation.overlap_s * 1000,
        by=request.caller.actor,
    )
    created = await services.intake.submit(create)
    services.tokens.clear()  # the replaced token has an end now
    return _created(request, secret, created)


async def known_token(request: Request, token_id: int) -> TokenRecord:
    """Return a token. Raises Problem 404."""
    for token in await request.services.store.tokens():
        if token.id == token_id:
            return token
    raise Problem(404, "unknown_token", f"unknown token {token_id}; GET /api/tokens lists them")


def path_number(request: Request, name: str) -> int:
    """Return a number in the path. Raises Problem 404 for anything else, which names nothing."""
    text = request.path[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise Problem(404, "not_found", f"{name} must be a number")
    return int(text)


def _created(request: Request, secret: str, token: Token) -> Answer:
    request.services.tokens.put(token)
    return json_answer(NewToken(token=secret, record=token_record(token)), status=201)


ROUTES: Final = (create_token, list_tokens, revoke_token, rotate_token)
