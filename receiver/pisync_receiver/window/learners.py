"""One learner's events, on a page and as a file.

The id goes by POST, so that it is in no address: gateways log addresses, and browsers keep them.
"""

from collections.abc import Mapping
from typing import Any, Final

from pisync_receiver.http.auth import Access
from pisync_receiver.http.responses import Answer, Reply
from pisync_receiver.window.fields import day, required, text
from pisync_receiver.window.i18n import gettext as _
from pisync_receiver.window.view import View, page

FIELDS: Final = ("learner_id", "learner_home", "since", "until")
ROWS: Final = 100


@page("GET", "/learners", Access.READER)
async def ask(view: View) -> Answer:
    """Ask for a learner's id."""
    return view.render("learner.html", wanted=dict.fromkeys(FIELDS), events=None, next=None)


@page("POST", "/learners", Access.READER)
async def timeline(view: View) -> Answer:
    """What one learner did, newest first."""
    form = await view.form()
    wanted = asked_for(form)
    found = await view.get("/api/learners/events", **wanted, limit=ROWS, cursor=text(form, "cursor"))
    return view.render("learner.html", wanted=wanted, events=found.value, next=found.next)


@page("POST", "/learners/export", Access.READER)
async def export(view: View) -> Reply:
    """Everything of one learner, as a file."""
    form = await view.form()
    return await view.download("/api/learners/events", format=text(form, "format"), **asked_for(form))


def asked_for(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters that name a learner, and a time."""
    return {
        "learner_id": required(form, "learner_id", _("Learner")),
        "learner_home": text(form, "learner_home"),
        "since": day(form, "since"),
        "until": day(form, "until"),
    }


PAGES: Final = (ask, timeline, export)
