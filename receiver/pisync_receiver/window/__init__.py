"""The admin's window: pages for people, made of the API's answers.

A page is a function that takes a `View` and is a row of its module's `PAGES`:

    @page("GET", "/devices", Access.READER, query=Query(params=(...,)), live=True)
    async def devices(view: View) -> Answer:
        found = await view.get("/api/devices", site=view.query["site"])
        return view.render("devices.html", devices=found.value, next=found.next)

    @page("POST", "/devices/{device_id}/retire", Access.ADMIN)
    async def retire(view: View) -> Answer:
        await view.send("PATCH", path_of("/api/devices/{}", view.path["device_id"]), {"retired": True})
        return view.redirect(path_of("/devices/{}", view.path["device_id"]), done="retired")

- `view.get` and `view.send` call the API as the person who is signed in: what the API refuses, the page refuses. A
  Problem that is raised becomes a page with its words. The path of a call is percent-encoded: `path_of`.
  `view.download` answers with an export of the API.
- `view.render` makes a page of a template, which extends `layout.html` and calls the parts in `macros.html` as `m.…`.
- With `live=True` the template has a block `live` around `m.live`, which the page asks for again every few seconds.
  The answer is kept for a few seconds for all who ask: the block must not depend on more than the address, the
  language, and the role and sites of the person, so it has no form.
- A page's parameters are made by `field` where a form may leave them empty; the API checks what is in them.
- A form is `<form method="post">{{ m.csrf_field(csrf) }}…</form>`; `await view.form()` gives its fields.
- `view.redirect(…, done="retired")` shows the words of `words.done("retired")` on the page that follows.
- Every visible word is in `{% trans %}` or `_()`. Names and texts from outside go through `|bidi`, times through
  `|when`, numbers through `|number`.
- A chart is a `<table>` in `m.chart`: the script draws what the table says.
"""

from collections.abc import Sequence
from functools import cache

from pisync_receiver.http.edge import Router
from pisync_receiver.http.routing import Route
from pisync_receiver.window import (
    audit,
    device,
    device_acts,
    devices,
    downloads,
    enrollment,
    learners,
    learning,
    privacy,
    sign_in,
    sites,
    today,
)
from pisync_receiver.window.rendering import Templates
from pisync_receiver.window.statics import Statics
from pisync_receiver.window.view import PageRow, make_route

PAGES: Sequence[PageRow] = (
    *sign_in.PAGES,
    *today.PAGES,
    *sites.PAGES,
    *devices.PAGES,
    *device.PAGES,
    *device_acts.PAGES,
    *downloads.PAGES,
    *learning.PAGES,
    *learners.PAGES,
    *enrollment.PAGES,
    *privacy.PAGES,
    *audit.PAGES,
)


def table(api: Router) -> list[Route]:
    """Return the row of every page and of its files. `api` answers the pages' calls."""
    statics, templates = _parts()
    return [*(make_route(row, api, templates) for row in PAGES), statics.route()]


@cache
def _parts() -> tuple[Statics, Templates]:
    """Read the files and the templates, once in a process."""
    return (statics := Statics()), Templates(statics)
