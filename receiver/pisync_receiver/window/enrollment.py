"""Enrollment: codes for a school, the sheet and files that hand them out, and who used which."""

from collections.abc import Mapping
from typing import Any, Final

import pisync_receiver.window.sheets as sheets
from pisync_common.times import format_ms
from pisync_receiver.errors import Problem
from pisync_receiver.http.auth import Access
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.calls import path_of
from pisync_receiver.window.fields import text, whole
from pisync_receiver.window.i18n import gettext as _
from pisync_receiver.window.view import View, page

CODES_MAX: Final = 200
"""Codes of one sheet."""
USES_MAX: Final = 1_000
SHOWN_MAX: Final = 100
"""Codes that the page lists: the newest."""
DAYS: Final = (1, 7, 30, 90, 365)
_DAY_S: Final = 86_400


@page("GET", "/enrollment", Access.READER)
async def enrollment(view: View) -> Answer:
    """Codes and who used them."""
    codes = (await view.get("/api/enrollment-codes")).value if view.may_act else []
    sites = (await view.get("/api/sites", limit=1000)).value if view.may_act else []
    now = format_ms(view.request.services.now_ms())
    suspicious = (await view.get("/api/suspicious")).value
    return view.render(
        "enrollment.html",
        codes=[code | {"ended": _ended(code, now)} for code in codes[: -SHOWN_MAX - 1 : -1]],
        total=len(codes),
        days=DAYS,
        sites=[row["site"] for row in sites if row["site"] is not None],
        suspicious=suspicious,
    )


@page("POST", "/enrollment", Access.ADMIN)
async def create(view: View) -> Answer:
    """Make codes, and show them this once."""
    if view.request.public_url() is None:
        raise Problem(400, "invalid_request", "the receiver's address is not known; set public_url, and try again")
    form = await view.form()
    wanted = {
        "count": whole(form, "count", _("How many codes"), low=1, high=CODES_MAX),
        "uses": whole(form, "uses", _("Devices each code lets in"), low=1, high=USES_MAX),
        "expires_in_s": whole(form, "days", _("Valid for"), low=1, high=DAYS[-1]) * _DAY_S,
        "site": text(form, "site"),
        "label": text(form, "label"),
    }
    made = await view.send("POST", "/api/enrollment-codes", wanted)
    return view.render(
        "enrollment_sheet.html",
        status=201,
        archive=sheets.archive(made),
        cards=sheets.cards(made),
        file_name=sheets.FILE_NAME,
    )


@page("GET", "/enrollment/{code_id}/end", Access.ADMIN)
async def confirm_end(view: View) -> Answer:
    """Ask before a code is ended."""
    code_id = view.path["code_id"]
    if all(str(code["id"]) != code_id for code in (await view.get("/api/enrollment-codes")).value):
        raise Problem(404, "unknown_code", f"unknown enrollment code {code_id[:20]}")
    return view.render("enrollment_end.html", code_id=code_id)


@page("POST", "/enrollment/{code_id}/end", Access.ADMIN)
async def end(view: View) -> Answer:
    """End a code."""
    await view.send("POST", path_of("/api/enrollment-codes/{}/end", view.path["code_id"]))
    return view.redirect("/enrollment", done="code-ended")


def _ended(code: Mapping[str, Any], now: str) -> str | None:
    """Return why a code lets no more devices in; None if it does."""
    if code["ended_at"] is not None:
        return _("ended")
    if code["expires_at"] <= now:
        return _("expired")
    return _("used up") if code["uses_left"] == 0 else None


PAGES: Final = (enrollment, create, confirm_end, end)
