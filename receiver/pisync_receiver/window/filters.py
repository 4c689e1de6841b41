"""How pages write times, numbers and names, in the language of the page."""

import json
import re
from contextvars import ContextVar
from typing import Final

import msgspec
from markupsafe import Markup, escape

from pisync_common.times import parse_ms
from pisync_receiver.window.i18n import CURRENT, _, ngettext

NOW_MS: Final[ContextVar[int]] = ContextVar("now_ms", default=0)
"""The time at which the page is made."""
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_KIB: Final = 1024
_DATA_CHARS: Final = 300


def when(time: str | None) -> Markup:
    """Write an RFC 3339 time as how long ago; the exact value is in the element. A script shows it in the viewer's
    zone."""
    if time is None:
        return Markup('<span class="none">{}</span>').format(_("never"))
    seconds = (NOW_MS.get() - parse_ms(time)) // 1000
    return _element(time, _ago(seconds))


def lasting(time: str) -> Markup:
    """Write how long ago an RFC 3339 time was as a length of time: it fits after "for"."""
    seconds = max(NOW_MS.get() - parse_ms(time), 0) // 1000
    return _element(time, duration(seconds))


def _element(time: str, text: str) -> Markup:
    # Pages write thousands of times and names: joining escaped text takes a third of the time of Markup.format.
    shown = f'<time datetime="{escape(time)}" title="{escape(exact(time))}">{escape(text)}</time>'
    return Markup(shown)  # noqa: S704


def exact(time: str) -> str:
    """Write an RFC 3339 time in full, in UTC."""
    return re.sub(r"(\.\d+)?Z$", " UTC", time.replace("T", " "))


def _ago(seconds: int) -> str:
    if -_MINUTE < seconds < _MINUTE:
        return _("just now")
    if seconds < 0:
        return _("in %(time)s") % {"time": duration(-seconds)}
    return _("%(time)s ago") % {"time": duration(seconds)}


def duration(seconds: float) -> str:
    """Write a length of time in its largest unit."""
    whole = int(seconds)
    if whole >= 2 * _DAY:
        return ngettext("%(n)s day", "%(n)s days", n := whole // _DAY) % {"n": number(n)}
    if whole >= 2 * _HOUR or whole == _HOUR:
        return ngettext("%(n)s hour", "%(n)s hours", n := whole // _HOUR) % {"n": number(n)}
    if whole >= _MINUTE:
        return ngettext("%(n)s minute", "%(n)s minutes", n := whole // _MINUTE) % {"n": number(n)}
    return ngettext("%(n)s second", "%(n)s seconds", whole) % {"n": number(whole)}


def number(value: float) -> str:
    """Write a number with separators; a fraction with one digit after the point."""
    text = f"{value:,.1f}" if isinstance(value, float) and not value.is_integer() else f"{int(value):,}"
    return text.replace(",", CURRENT.get().thousands)


def size(value: int) -> str:
    """Write a number of bytes."""
    amount, unit = float(value), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < _KIB:
            break
        amount, unit = amount / _KIB, larger
    return f"{number(round(amount, 1))} {unit}"


def bidi(text: str | None) -> Markup:
    """Write a text from outside so that its direction stays its own: a name in Arabic, or with a bidi override in it,
    leaves its neighbours in their places."""
    return Markup('<span class="none">–</span>') if text is None else Markup(f"<bdi>{escape(text)}</bdi>")  # noqa: S704


def ranges(missing: list[list[int]]) -> str:
    """Write ranges of numbers: "108 to 120, 200"."""
    parts = [_("%(first)s to %(last)s") if first != last else "%(first)s" for first, last in missing]
    numbers = ({"first": number(first), "last": number(last)} for first, last in missing)
    return _(", ").join(part % values for part, values in zip(parts, numbers, strict=True))


def join(texts: list[str]) -> Markup:
    """Write texts as a list in one line."""
    return Markup("{}").format(_(", ")).join(texts)


def data(value: object) -> Markup:
    """Write a value as short JSON; a long one is cut."""
    if not value:
        return Markup('<span class="none">–</span>')
    text = msgspec.json.encode(value).decode()
    return Markup("<code>{}</code>").format(text if len(text) <= _DATA_CHARS else text[:_DATA_CHARS] + "…")


def json_text(value: object) -> str:
    """Write a JSON value for a reader."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def detail(text: str) -> Markup:
    """Write the JSON object of an audit entry as names and values."""
    given: dict[str, object] = json.loads(text)
    shown = (
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in given.items()
    )
    return Markup(" · ").join(Markup("<span>{}: <bdi>{}</bdi></span>").format(name, value) for name, value in shown)


FILTERS: Final = {
    "bidi": bidi,
    "data": data,
    "detail": detail,
    "duration": duration,
    "exact": exact,
    "lasting": lasting,
    "listed": join,
    "number": number,
    "ranges": ranges,
    "size": size,
    "tojson_text": json_text,
    "when": when,
}
