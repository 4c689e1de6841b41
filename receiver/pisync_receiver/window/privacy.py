"""Erasing a learner, and keeping events for so long: what an act would do, then the act, then what it did.

An act on millions of rows is done in steps of two seconds, each a form that is sent: by the page's script, or by a
button where there is none.
"""

from collections.abc import Mapping
from typing import Any, Final

from pisync_receiver.http.auth import Access
from pisync_receiver.http.responses import Answer
from pisync_receiver.window.fields import required, text, whole
from pisync_receiver.window.i18n import gettext as _
from pisync_receiver.window.view import View, page

DAYS_MAX: Final = 36_500
_DAY_S: Final = 86_400


@page("GET", "/privacy", Access.ADMIN)
async def privacy(view: View) -> Answer:
    """What can be done about the data of learners."""
    return view.render("privacy.html")


@page("POST", "/privacy/erase", Access.ADMIN)
async def erase(view: View) -> Answer:
    """Erase a learner: say what it would do, ask for the id again, do it step by step, show the receipt."""
    form = await view.form()
    learner = {"learner_id": required(form, "learner_id", _("Learner")), "learner_home": text(form, "learner_home")}
    step = form.get("step")
    if step == "erase" and form.get("confirmed") != learner["learner_id"]:
        step = "mistyped"
    if step not in ("erase", "continue"):
        plan = await view.send("POST", "/api/learners/erase", learner | {"dry_run": True})
        return view.render("erase.html", learner=learner, plan=plan, mistyped=step == "mistyped")
    done = await view.send("POST", "/api/learners/erase", learner)
    return view.render("erase_progress.html" if done["more"] else "erase_receipt.html", learner=learner, done=done)


@page("POST", "/privacy/retention", Access.CHIEF)
async def retention(view: View) -> Answer:
    """Delete what arrived long ago: say how much it is, then do it step by step."""
    form = await view.form()
    days = whole(form, "days", _("Days"), low=1, high=DAYS_MAX)
    wanted = {"older_than_s": days * _DAY_S, "type": text(form, "type")}
    values: dict[str, Any] = {"days": days, "type": wanted["type"]}
    if form.get("step") not in ("delete", "continue"):
        plan = await view.send("POST", "/api/retention", wanted | {"dry_run": True})
        return view.render("retention.html", plan=plan, **values)
    done = await view.send("POST", "/api/retention", wanted)
    return view.render("retention_done.html", counts=_added(form, done), more=done["more"], **values)


def _added(form: Mapping[str, str], done: Mapping[str, Any]) -> dict[str, int]:
    """Return what all steps so far did."""
    before = {name: form.get(name, "") for name in done}
    return {
        name: count + (int(before[name]) if before[name].isascii() and before[name].isdigit() else 0)
        for name, count in done.items()
        if isinstance(count, int) and not isinstance(count, bool)
    }


PAGES: Final = (privacy, erase, retention)
