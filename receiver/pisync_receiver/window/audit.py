"""The audit log: who did what, and whether the log is as it was written."""

from typing import Final

import msgspec

from pisync_receiver.domain.audit import AuditRecord, Chain
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.fields import day, text, whole
from pisync_receiver.window.i18n import gettext as _
from pisync_receiver.window.view import View, field, page

NUMBER_MAX: Final = 999_999_999
ROWS_MAX: Final = 1_000
STEP_PAGES: Final = 20
"""Pages of entries that a step checks: some two seconds' worth."""
FILTERS: Final = ("act", "actor", "target", "since", "until")


_QUERY: Final = Query(
    params=(*(field(name, f"As {name} of GET /api/audit") for name in FILTERS), field("cursor", "As there"))
)


@page("GET", "/audit", Access.CHIEF, query=_QUERY)
async def audit(view: View) -> Answer:
    """Every act, export and sign-in, newest first."""
    wanted = {name: view.query[name] for name in FILTERS}
    asked = {name: day(wanted, name) if name in ("since", "until") else wanted[name] for name in FILTERS}
    found = await view.get("/api/audit", **asked, cursor=view.query["cursor"])
    return view.render(
        "audit.html",
        entries=found.value,
        next=found.next,
        wanted=wanted,
        filter={name: value for name, value in asked.items() if value is not None},
    )


@page("POST", "/audit/verify", Access.CHIEF)
async def verify(view: View) -> Answer:
    """Check the hash of every entry, in steps; a step continues where the form says that the step before ended."""
    form = await view.form()
    chain = Chain(text(form, "expected"))
    cursor = text(form, "cursor")
    if cursor is not None:
        chain.number = whole(form, "number", _("Number"), low=1, high=NUMBER_MAX)
        chain.head = form.get("head", "")
        chain.found = chain.found or form.get("found") == "true"
    wrong = None
    for _page in range(STEP_PAGES):
        found = await view.get("/api/audit", order="oldest", limit=ROWS_MAX, cursor=cursor)
        wrong = next(filter(None, map(chain.add, msgspec.convert(found.value, list[AuditRecord]))), None)
        cursor = found.next
        if wrong is not None or cursor is None:
            break
    return view.render("audit_verify.html", chain=chain, wrong=wrong, cursor=cursor, expected=text(form, "expected"))


PAGES: Final = (audit, verify)
