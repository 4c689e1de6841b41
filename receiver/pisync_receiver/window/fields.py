"""Fields of forms, read as people fill them in."""

import re
from collections.abc import Mapping
from typing import Final

from pisync_receiver.errors import Problem
from pisync_receiver.window.i18n import gettext as _

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def text(form: Mapping[str, str], name: str) -> str | None:
    """Return a field's text without white space around it; None where it is empty."""
    return form.get(name, "").strip() or None


def lines(form: Mapping[str, str], name: str) -> str:
    """Return a field of several lines. A new line is one character, as the page counts it; browsers send two."""
    return form.get(name, "").replace("\r\n", "\n")


def required(form: Mapping[str, str], name: str, label: str) -> str:
    """Return a field's text as it was written. Raises Problem where it is empty; `label` is the field's on the page."""
    written = form.get(name, "")
    if not written.strip():
        raise Problem(400, "invalid_field", _("%(field)s is empty. Go back and fill it in.") % {"field": label})
    return written


def whole(form: Mapping[str, str], name: str, label: str, *, low: int, high: int) -> int:
    """Return a field's whole number. Raises Problem with what is allowed."""
    written = form.get(name, "").strip()
    if not (written.isascii() and written.isdigit() and len(written) < 10 and low <= int(written) <= high):
        said = _("%(field)s must be a whole number from %(low)s to %(high)s. Go back and correct it.")
        raise Problem(400, "invalid_field", said % {"field": label, "low": low, "high": high})
    return int(written)


def day(given: Mapping[str, str | None], name: str) -> str | None:
    """Return the moment at which a day of UTC begins, as the API takes it; None for an empty field."""
    written = (given.get(name) or "").strip()
    return f"{written}T00:00:00Z" if _DAY.fullmatch(written) else written or None
