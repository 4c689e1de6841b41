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
DIGITS_MAX: Final = 18
STEP_CALLS: Final = 10
"""Batches that a step deletes."""
_DAY_S: Final = 86_400
_DELETED: Final = ("events", "sync_events")


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
    erased = await view.send("POST", "/api/learners/erase", learner)
    return view.render(
        "erase_progress.html" if erased["more"] else "erase_receipt.html", learner=learner, erased=erased
    )


@page("POST", "/privacy/retention", Access.CHIEF)
async def retention(view: View) -> Answer:
    """Delete what arrived long ago: say how much it is, then do it step by step."""
    form = await view.form()
    days = whole(form, "days", _("Days"), low=1, high=DAYS_MAX)
    wanted: dict[str, Any] = {"older_than_s": days * _DAY_S, "type": text(form, "type")}
    if form.get("step") not in ("delete", "continue"):
        plan = await view.send("POST", "/api/retention", wanted | {"dry_run": True})
        return view.render("retention.html", days=days, type=wanted["type"], plan=plan)
    after, counts = _number(form, "after"), {name: _number(form, name) for name in _DELETED}
    for _call in range(STEP_CALLS):
        done = await view.send("POST", "/api/retention", wanted | {"after": after})
        after, counts = done["after"], {name: count + done[name] for name, count in counts.items()}
        if not done["more"]:
            break
    return view.render(
        "retention_done.html", days=days, type=wanted["type"], counts=counts, after=after, unfinished=done["more"]
    )


def _number(form: Mapping[str, str], name: str) -> int:
    """Return what the step before wrote into the form, 0 for the first."""
    written = form.get(name, "")
    return int(written) if written.isascii() and written.isdigit() and len(written) <= DIGITS_MAX else 0


PAGES: Final = (privacy, erase, retention)
