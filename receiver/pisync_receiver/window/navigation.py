"""The pages in the navigation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pisync_receiver.http.auth import Caller
from pisync_receiver.window.i18n import gettext as _

For = Literal["reader", "admin", "chief"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A page in the navigation."""

    path: str
    name: str


def entries(caller: Caller) -> Sequence[Entry]:
    """Return the pages that a person may open, in the language of the page."""
    pages: tuple[tuple[For, str, str], ...] = (
        ("reader", "/", _("Today")),
        ("reader", "/sites", _("Sites")),
        ("reader", "/devices", _("Devices")),
        ("reader", "/learning", _("Learning")),
        ("reader", "/enrollment", _("Enrollment")),
        ("admin", "/privacy", _("Privacy")),
        ("chief", "/audit", _("Audit log")),
    )
    allowed = {"reader"}
    if caller.scope in ("admin", None):
        allowed |= {"admin"} if caller.sites else {"admin", "chief"}
    return [Entry(path=path, name=name) for whom, path, name in pages if whom in allowed]
