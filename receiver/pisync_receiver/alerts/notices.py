"""The text of notices of changes: device ids, sites, counts, times and error codes; never what learners did."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from enum import Enum
from itertools import groupby
from typing import Final
from urllib.parse import quote

from pisync_common.times import from_ms
from pisync_receiver.domain.fleet import DEVICES_OF_A_CLASS, TROUBLE
from pisync_receiver.domain.notices import Transition
from pisync_receiver.domain.records import errors_of
from pisync_receiver.text import one_line

NO_SITE: Final = "no site"
_MAX_SITES: Final = 20
"""With them a message stays below 4,096 characters, which is all that some services take."""
_MAX_DEVICES: Final = 5
_MAX_CODES: Final = 3


class News(Enum):
    """What happened to a device since the last notice of it."""

    SILENT = "is silent"
    FAILING = "keeps failing"
    FAILING_AGAIN = "recovered and keeps failing again"
    RECOVERED = "recovered"
    FAILED_AND_RECOVERED = "failed and recovered"
    BACK = "was silent and is back"

    def of(self, count: int) -> str:
        """Return the words for one device or site, or for several devices."""
        if count == 1:
            return self.value
        return self.value.replace("keeps", "keep").replace("was ", "were ").replace("is ", "are ")


@dataclass(frozen=True, kw_only=True)
class Alert:
    """The pending transitions of one device, summarized."""

    device_id: str
    site: str | None
    news: News
    since_ms: int | None
    codes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one line or one message is about: a device, or a site whose `devices` are half of its `active` devices."""

    news: News
    alerts: Sequence[Alert]
    active: int | None = None

    @property
    def site(self) -> str | None:
        return self.alerts[0].site


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One message to operators. The title alone says enough for a phone's lock screen."""

    kind: str
    title: str
    body: str


@dataclass(frozen=True)
class Links:
    """Addresses of pages; empty where the receiver's own address is not known."""

    url: str | None = None

    def home(self) -> str:
        return self._page("/")

    def device(self, device_id: str) -> str:
        return self._page(f"/devices/{quote(device_id, safe='')}")

    def site(self, site: str | None) -> str:
        return self._page("/sites" if site is None else f"/sites/{quote(site, safe='')}")

    def _page(self, path: str) -> str:
        return "" if self.url is None else f"\n{self.url}{path}"


def parts_of(pending: Iterable[Transition], active: Mapping[str | None, int]) -> list[Part]:
    """Summarize transitions: sites of which at least half of the `active` devices changed alike, and devices."""
    ordered = sorted(pending, key=lambda each: (each.device_id, each.id))
    folded = [_alert(list(group)) for _, group in groupby(ordered, key=lambda each: each.device_id)]
    groups: dict[tuple[str | None, News], list[Alert]] = {}
    for alert in folded:
        if alert is not None:
            groups.setdefault((alert.site, alert.news), []).append(alert)
    parts: list[Part] = []
    for (site, news), alerts in groups.items():
        count = max(active.get(site, 0), len(alerts))
        if site is not None and len(alerts) >= DEVICES_OF_A_CLASS and len(alerts) * 2 >= count:
            parts.append(Part(news=news, alerts=alerts, active=count))
        else:
            parts += [Part(news=news, alerts=[alert]) for alert in alerts]
    return parts


def notices(parts: Sequence[Part], *, digest: bool, zone: tzinfo, links: Links) -> list[Notice]:
    """Return one notice of everything (`digest`), or one for each device and site; times are shown in `zone`."""
    if digest:
        alerts = [alert for part in parts for alert in part.alerts]
        title = f"{number(len(alerts), 'device')}: {_counts(alerts)}"
        return [Notice(kind="digest", title=title, body=_by_site(parts, zone) + links.home())]
    return [_notice(part, zone, links) for part in parts]


def site_name(site: str | None) -> str:
    return NO_SITE if site is None else one_line(site)


def since(began_ms: Iterable[int | None], zone: tzinfo) -> str:
    """Return ` since` the first of these moments; empty if none is known."""
    known = [ms for ms in began_ms if ms is not None]
    if not known:
        return ""
    try:
        return from_ms(min(known)).astimezone(zone).strftime(" since %Y-%m-%d %H:%M %Z")
    except OverflowError:  # a damaged row must not hold up the notices of other devices
        return " since an unknown time"


def mostly(codes: Sequence[str]) -> str:
    """Return ` (mostly dns, tls)` for codes in the order of their weight; empty for none."""
    most = ", ".join(map(one_line, codes[:_MAX_CODES]))
    return f" ({'mostly ' if len(codes) > 1 else ''}{most})" if most else ""


def number(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"


def _alert(transitions: Sequence[Transition]) -> Alert | None:
    """Return what to tell of a device; None if there is nothing: it was retired, or is as it was told last."""
    before, last = transitions[0].before, transitions[-1]
    states = [each.state for each in transitions]
    trouble = next((each for each in reversed(transitions) if each.state in TROUBLE), last)
    if last.state == "retired":
        return None
    if last.state == "silent":
        news = News.SILENT
    elif last.state == "failing":
        news = News.FAILING_AGAIN if before == "failing" else News.FAILING
    elif before in TROUBLE:
        news = News.RECOVERED
    else:
        news = News.FAILED_AND_RECOVERED if "failing" in states else News.BACK
    return Alert(
        device_id=last.device_id,
        site=last.site,
        news=news,
        since_ms=trouble.since_ms,
        codes=tuple(errors_of(trouble.errors)) if trouble.state == "failing" else (),
    )


def _notice(part: Part, zone: tzinfo, links: Links) -> Notice:
    site = site_name(part.site)
    if part.active is not None:
        title = f"{site} {part.news.of(1)}: {_share(part)}"
        return Notice(kind="change", title=title, body=_line(part, zone) + links.site(part.site))
    device_id = part.alerts[0].device_id
    body = f"{site}: {_group(part.news, part.alerts, zone)}{links.device(device_id)}"
    return Notice(kind="change", title=f"{device_id} ({site}) {part.news.of(1)}", body=body)


def _counts(alerts: Sequence[Alert]) -> str:
    counts = Counter(alert.news for alert in alerts)
    return ", ".join(f"{counts[news]:,} {news.of(counts[news])}" for news in News if counts[news])


def _by_site(parts: Sequence[Part], zone: tzinfo) -> str:
    """Return the lines of each site, the site with most devices first."""
    sites: dict[str | None, list[Part]] = {}
    for part in parts:
        sites.setdefault(part.site, []).append(part)
    by_size = sorted(sites.items(), key=lambda item: (-_size(item[1]), item[0] or ""))
    lines = [_at_site(at_site, zone) for _, at_site in by_size[:_MAX_SITES]]
    if rest := by_size[_MAX_SITES:]:
        lines.append(f"and {sum(_size(at_site) for _, at_site in rest):,} devices at {len(rest):,} more sites")
    return "\n".join(lines)


def _size(parts: Sequence[Part]) -> int:
    return sum(len(part.alerts) for part in parts)


def _at_site(parts: Sequence[Part], zone: tzinfo) -> str:
    """Return what happened at a site: a line for the site as a whole, and one for its other devices."""
    lines = [_line(part, zone) for part in parts if part.active is not None]
    alerts = [alert for part in parts if part.active is None for alert in part.alerts]
    by_news = {news: [alert for alert in alerts if alert.news is news] for news in News}
    if groups := [_group(news, group, zone) for news, group in by_news.items() if group]:
        lines.append(f"{site_name(parts[0].site)}: {'; '.join(groups)}")
    return "\n".join(lines)


def _line(part: Part, zone: tzinfo) -> str:
    return f"{site_name(part.site)} {part.news.of(1)}: {_share(part)}{_why(part.news, part.alerts, zone)}"


def _share(part: Part) -> str:
    return f"{len(part.alerts):,} of {number(part.active or 0, 'device')}"


def _group(news: News, alerts: Sequence[Alert], zone: tzinfo) -> str:
    text = f"{number(len(alerts), 'device')} {news.of(len(alerts))}{_why(news, alerts, zone)}"
    if len(alerts) <= _MAX_DEVICES:
        text += f": {', '.join(alert.device_id for alert in alerts)}"
    return text


def _why(news: News, alerts: Sequence[Alert], zone: tzinfo) -> str:
    if news is News.RECOVERED:
        return ""
    return since((alert.since_ms for alert in alerts), zone) + _codes(alerts)


def _codes(alerts: Sequence[Alert]) -> str:
    """Return the error codes, those of most devices first."""
    codes = Counter(code for alert in alerts for code in alert.codes)
    return mostly([code for code, _ in sorted(codes.items(), key=lambda item: (-item[1], item[0]))])
