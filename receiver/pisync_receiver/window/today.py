"""Today: which sites need help, and why."""

from typing import Final

from pisync_receiver.http.auth import Access
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.view import View, page

SITES: Final = 24
"""Sites on the page; the rest are a link."""


@page("GET", "/", Access.READER, live=True)
async def today(view: View) -> Answer:
    """Which sites need help today, and why."""
    overview = (await view.get("/api/overview")).value
    sites = (await view.get("/api/sites", sort="need", limit=SITES)).value
    troubled = [site for site in sites if site["need"] > 0]
    in_need = [site for site in troubled if site["in_need"]]
    others = [site for site in troubled if not site["in_need"]]
    return view.render("today.html", overview=overview, sites=in_need, others=others)


PAGES: Final = (today,)
