"""Devices: the list, one, its completeness; move, rename and retire."""

from typing import Final

from pisync_common import rules
from pisync_common.errors import RuleError
from pisync_receiver.api.decoding import decode_body, to_ms
from pisync_receiver.api.schemas import DeviceChanges
from pisync_receiver.domain.fleet import SORTS, STATES, DeviceFilter, DeviceRecord
from pisync_receiver.domain.records import Completeness
from pisync_receiver.domain.submissions import DeviceChange
from pisync_receiver.errors import Problem
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access, forbidden
from pisync_receiver.http.params import Query
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer, json_answer
from pisync_receiver.http.routing import route

DEVICES = Query(
    params=(
        params.text("site", "Only devices of this site"),
        params.flag("without_site", "Only devices that belong to no site (true)"),
        params.options("state", "Only devices in this state", STATES),
        params.text("search", "Only devices with this in their id, label or site; a to z match A to Z"),
        params.flag(
            "incomplete", "Only devices of which something is missing, was rejected or conflicts; or only others"
        ),
        params.flag("cloned", "Only devices whose identity two devices have used; or only others"),
        params.duration("silent_for", "Only devices without contact for this long: 12h, 3d"),
        params.choice(
            "sort",
            "device_id; last_contact: the longest silence first; failures: the most in a row first; site",
            SORTS,
            default="device_id",
        ),
        LIMIT,
        CURSOR,
    )
)


@route("GET", "/api/devices", Access.READER, answer=list[DeviceRecord], pages=True, total=True, query=DEVICES)
async def list_devices(request: Request) -> Answer:
    """Every device: its state, its last contact, and how its sync runs go. With every sort, a device that fits the
    filter all the while is on one of the pages, perhaps on two."""
    return await request.cached(_page)


async def _page(request: Request) -> Answer:
    query = request.query
    silent_for = query["silent_for"]
    criteria = request.services.criteria()
    page = await request.services.store.devices(
        DeviceFilter(
            site=query["site"],
            without_site=query["without_site"] or False,
            sites=request.caller.sites,
            state=query["state"],
            search=query["search"],
            incomplete=query["incomplete"],
            cloned=query["cloned"],
            silent_since_ms=None if silent_for is None else criteria.now_ms - silent_for,
        ),
        criteria=criteria,
        sort=query["sort"],
        limit=query["limit"],
        cursor=query["cursor"],
    )
    return request.page(page)


@route("GET", "/api/devices/{device_id}", Access.READER, answer=DeviceRecord, problems=(404,))
async def get_device(request: Request) -> Answer:
    """One device. Last contact and last refusal show whether it can get through."""
    return json_answer(await known_device(request))


@route("GET", "/api/devices/{device_id}/completeness", Access.READER, answer=Completeness, problems=(404,))
async def get_completeness(request: Request) -> Answer:
    """For each stream of a device: what is accounted for, what is missing, what was rejected."""
    device = await known_device(request)
    return json_answer(await request.services.store.completeness(device.device_id))


@route(
    "PATCH", "/api/devices/{device_id}", Access.ADMIN, answer=DeviceRecord, request_body=DeviceChanges, problems=(404,)
)
async def change_device(request: Request) -> Answer:
    """Move a device to another site, rename it, retire it or bring it back."""
    changes = decode_body(DeviceChanges, await request.body())
    device = await known_device(request)
    if changes.site is not None and not request.caller.sees(changes.site):
        raise forbidden("this token is limited to sites, and the new site is not among them")
    change = DeviceChange(
        device_id=device.device_id,
        at_ms=request.services.now_ms(),
        site=changes.site,
        site_since_ms=None if changes.site_since is None else to_ms("site_since", changes.site_since),
        label=changes.label,
        retire=changes.retired,
        by=request.caller.actor,
    )
    await request.services.intake.submit(change)
    if changes.retired:
        request.services.tokens.clear()  # its tokens are revoked now
    return json_answer(await _found(request, device.device_id))


async def known_device(request: Request) -> DeviceRecord:
    """Return the device that the path names, if the caller may see it. Raises Problem 404."""
    named = request.path["device_id"]
    unknown = Problem(404, "unknown_device", f"unknown device {named[:128]!r}: it has not enrolled or reported here")
    try:
        device_id = rules.check_id("device_id", named)
    except RuleError as error:
        raise unknown from error  # a database may refuse even to look for it
    device = await _found(request, device_id)
    if device is None or not request.caller.sees(device.site):
        raise unknown
    return device


async def _found(request: Request, device_id: str) -> DeviceRecord | None:
    return await request.services.store.device(device_id, criteria=request.services.criteria())


ROUTES: Final = (list_devices, get_device, change_device, get_completeness)
