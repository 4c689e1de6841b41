"""The fleet: how many devices are well, which sites need help and why, what is incomplete."""

from typing import Final

from msgspec import UNSET

from pisync_receiver.api.decoding import decode_body
from pisync_receiver.api.schemas import SiteChanges
from pisync_receiver.domain.audit import audited
from pisync_receiver.domain.fleet import SITE_SORTS, STATES, IncompleteDevice, Overview, SiteRecord
from pisync_receiver.errors import Problem
from pisync_receiver.http import params
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import duration_ms
from pisync_receiver.http.request import CURSOR, LIMIT, Request
from pisync_receiver.http.responses import Answer, json_answer
from pisync_receiver.http.routing import route
from pisync_receiver.store.audit import audit_statement
from pisync_receiver.store.running import Query, Row

SILENT_AFTER_LEAST_MS: Final = 60_000

SITES: Final = params.Query(
    params=(
        params.text("search", "Only sites with this in their name, whatever the case"),
        params.options("state", "Only sites with a device in this state", STATES),
        params.choice("sort", "need: what fails as a whole first; site: by name", SITE_SORTS, default="need"),
        LIMIT,
        CURSOR,
    )
)
INCOMPLETE: Final = params.Query(params=(params.text("site", "Only devices of this site"), LIMIT, CURSOR))


@route("GET", "/api/overview", Access.READER, answer=Overview)
async def get_overview(request: Request) -> Answer:
    """The fleet at a glance: devices by state, sites in need, what is missing, what changed since yesterday."""
    return await request.cached(_overview)


async def _overview(request: Request) -> Answer:
    services = request.services
    return json_answer(await services.store.overview(criteria=services.criteria(), sites=request.caller.sites))


@route("GET", "/api/sites", Access.READER, answer=list[SiteRecord], pages=True, total=True, query=SITES)
async def list_sites(request: Request) -> Answer:
    """Every site with a device: its devices by state, how much it needs help, since when and why. The site null stands
    for the devices that belong to no site."""
    return await request.cached(_sites)


async def _sites(request: Request) -> Answer:
    query = request.query
    page = await request.services.store.sites_page(
        criteria=request.services.criteria(),
        search=query["search"],
        state=query["state"],
        sort=query["sort"],
        sites=request.caller.sites,
        limit=query["limit"],
        cursor=query["cursor"],
    )
    return request.page(page)


@route("GET", "/api/sites/{site}", Access.READER, answer=SiteRecord, problems=(404,))
async def get_site(request: Request) -> Answer:
    """One site."""
    return json_answer(await known_site(request))


@route("PATCH", "/api/sites/{site}", Access.ADMIN, answer=SiteRecord, request_body=SiteChanges, problems=(404,))
async def change_site(request: Request) -> Answer:
    """Set when the devices of a site count as silent, for holidays say."""
    changes = decode_body(SiteChanges, await request.body())
    site = await known_site(request)
    if changes.silent_after is not UNSET:
        await _set_silent_after(request, site.site, _silent_after_ms(changes.silent_after))
    return json_answer(await known_site(request))


async def _set_silent_after(request: Request, site: str | None, after_ms: int | None) -> None:
    actor, now = request.caller.actor, request.services.now_ms()

    def decide(found: list[list[Row]]) -> list[Query]:
        before_ms = found[0][0][0] if found[0] else None
        if before_ms == after_ms:
            return []
        told = {"silent_after_s": [None if ms is None else ms // 1000 for ms in (before_ms, after_ms)]}
        return [
            ("put_site", {"site": site, "silent_after": after_ms, "at": now}),
            audit_statement(audited(actor, "site.change", f"site {site}", now, told)),
        ]

    await request.services.store.act([("site_settings", {"site": site})], decide)


def _silent_after_ms(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        if (after_ms := duration_ms(text)) >= SILENT_AFTER_LEAST_MS:
            return after_ms
    except ValueError:
        pass
    raise Problem(400, "invalid_request", "silent_after: must be a length of time from 1m up, such as 12h, 30d or 8w")


@route("GET", "/api/incomplete", Access.READER, answer=list[IncompleteDevice], pages=True, query=INCOMPLETE)
async def list_incomplete(request: Request) -> Answer:
    """Every device of which something is missing, was rejected or conflicts, with the first missing ranges."""
    return await request.cached(_incomplete)


async def _incomplete(request: Request) -> Answer:
    query = request.query
    page = await request.services.store.incomplete(
        site=query["site"], sites=request.caller.sites, limit=query["limit"], cursor=query["cursor"]
    )
    return request.page(page)


async def known_site(request: Request) -> SiteRecord:
    """Return the site that the path names, if the caller may see it and a device is there. Raises Problem 404."""
    named = request.path["site"]
    if request.caller.sees(named) and "\0" not in named:
        services = request.services
        for site in await services.store.sites(criteria=services.criteria(), site=named):
            return site
    raise Problem(404, "unknown_site", f"unknown site {named[:256]!r}: no device is there")


ROUTES: Final = (get_overview, list_sites, get_site, change_site, list_incomplete)
