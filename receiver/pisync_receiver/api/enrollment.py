"""Enrollment: an admin makes codes, and a code becomes a device's identity and token.

A code is short enough to read aloud and type, and long enough that it cannot be guessed: sixteen letters and digits in
groups of four, 80 random bits, without the letters people mistake (Crockford's base 32): `K7MQ-2XPD-9RTA-WW4Z`. Case,
dashes and spaces do not matter, and O, I and L are read as 0 and 1.
"""

import json
import secrets
from typing import Final

from pisync_receiver.api.decoding import decode_body, decode_enrollment
from pisync_receiver.api.schemas import CodeRequest, Enrollment, Identity, NewCode
from pisync_receiver.api.tokens import path_number
from pisync_receiver.domain.records import CodeRecord, code_record
from pisync_receiver.domain.rows import EnrollmentCode
from pisync_receiver.domain.submissions import CodeBatch, CodeCreate, CodeEnd, Enroll
from pisync_receiver.errors import Problem
from pisync_receiver.http.auth import Access, forbidden, new_token, token_hash
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer, json_answer
from pisync_receiver.http.routing import route

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_GROUPS: Final = 4
_GROUP: Final = 4
_MISTAKEN: Final = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})


def new_code() -> str:
    """Return a fresh code; show it once and keep only the hash of its `normalized` form."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS))


def normalized(code: str) -> str:
    """Return what a typed code means: two spellings of one code have one `normalized` form."""
    return code.strip().upper().translate(_MISTAKEN)


@route("POST", "/api/enroll", Access.PUBLIC, answer=Identity, status=201, request_body=Enrollment, problems=(403, 409))
async def enroll(request: Request) -> Answer:
    """Exchange a code for an identity. Send it again, with the device id, if the answer was lost."""
    wanted = decode_enrollment(await request.body())
    services = request.services
    token = new_token("device")
    submission = Enroll(
        code_hash=token_hash(normalized(wanted.code)),
        device_id=wanted.device_id,
        site=wanted.site,
        fallback_device_id=f"pi-{secrets.token_hex(6)}",
        token_hash=token_hash(token),
        at_ms=services.now_ms(),
        address=request.address,
    )
    enrolled = await services.intake.submit(submission)
    for row in (enrolled.token, *enrolled.ending):
        services.tokens.put(row)
    return json_answer(Identity(device_id=enrolled.device_id, token=token), status=201)


@route(
    "POST", "/api/enrollment-codes", Access.ADMIN, answer=NewCode | list[NewCode], status=201, request_body=CodeRequest
)
async def create_code(request: Request) -> Answer:
    """Create a code for `pisync enroll`; with `count`, that number of codes in a single act, answered as a list."""
    wanted = decode_body(CodeRequest, await request.body())
    if not request.caller.sees(wanted.site):
        raise forbidden("this token is limited to sites; name a site of its own for the code")
    if wanted.count is not None and wanted.device_id is not None:
        raise Problem(400, "invalid_request", "count: only a single code can be made for a device id")
    if wanted.device_id is not None and request.caller.sites is not None:
        await _check_device(request, wanted.device_id)
    codes = [new_code() for _ in range(wanted.count or 1)]
    now = request.services.now_ms()
    creates = [
        CodeCreate(
            code_hash=token_hash(normalized(code)),
            at_ms=now,
            expires_ms=now + wanted.expires_in_s * 1000,
            uses=wanted.uses,
            site=wanted.site,
            device_id=wanted.device_id,
            label=wanted.label,
            by=request.caller.actor,
        )
        for code in codes
    ]
    if wanted.count is None:
        return json_answer(_new(request, codes[0], await request.services.intake.submit(creates[0])), status=201)
    made = await request.services.intake.submit(CodeBatch(codes=tuple(creates)))
    return json_answer([_new(request, code, row) for code, row in zip(codes, made.codes, strict=True)], status=201)


async def _check_device(request: Request, device_id: str) -> None:
    """Refuse a code with which a device would be taken from a site that the caller does not see."""
    device = await request.services.store.device(device_id, criteria=request.services.criteria())
    if device is not None and not request.caller.sees(device.site):
        raise forbidden("this token is limited to sites, and there is a device of this id elsewhere")


def _new(request: Request, code: str, row: EnrollmentCode) -> NewCode:
    return NewCode(code=code, enroll_file=enroll_file(request.public_url(), code, row), record=code_record(row))


def enroll_file(receiver: str | None, code: str, row: EnrollmentCode) -> str | None:
    """Return the text of `pisync-enroll.toml`; None if the receiver's address is not known."""
    if receiver is None:
        return None
    values = {"receiver": receiver, "code": code, "site": row.site, "device_id": row.device_id}
    given = {name: value for name, value in values.items() if value is not None}
    # TOML has JSON's way to write text.
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in given.items())
    return "".join(("# On the boot partition of a device, as pisync-enroll.toml: it enrolls when it starts.\n", *lines))


@route("GET", "/api/enrollment-codes", Access.ADMIN, answer=list[CodeRecord])
async def list_codes(request: Request) -> Answer:
    """Every enrollment code, without the code itself, and the devices it let in."""
    return json_answer([code for code in await request.services.store.codes() if request.caller.sees(code.site)])


@route("POST", "/api/enrollment-codes/{code_id}/end", Access.ADMIN, answer=CodeRecord, problems=(404, 503))
async def end_code(request: Request) -> Answer:
    """End a code now. Devices that it let in keep their tokens."""
    code_id = path_number(request, "code_id")
    if request.caller.sites is not None:
        await _check_visible(request, code_id)
    end = CodeEnd(code_id=code_id, at_ms=request.services.now_ms(), by=request.caller.actor)
    ended = await request.services.intake.submit(end)
    return json_answer(code_record(ended))


async def _check_visible(request: Request, code_id: int) -> None:
    codes = await request.services.store.codes()
    if not any(code.id == code_id and request.caller.sees(code.site) for code in codes):
        raise Problem(404, "unknown_code", f"unknown enrollment code {code_id}; GET /api/enrollment-codes lists them")


ROUTES: Final = (enroll, create_code, list_codes, end_code)
