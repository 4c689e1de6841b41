"""Today: which sites need help, and why."""

from typing import Final

from pisync_receiver.http.auth import Access
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.view import View, page

SITES: Final = 12
"""Sites in need on the page; the rest are a link."""


@page("GET", "/", Access.READER, live=True)
async def today(view: View) -> Answer:
    """Which sites need help today, and why."""
    overview = (await view.get("/api/overview")).value
    sites = (await view.get("/api/sites", sort="need", limit=SITES)).value
    in_need = [site for site in sites if site["need"] > 0]
    return view.render("today.html", overview=overview, sites=in_need)


PAGES: Final = (today,)
