"""The daily digest: how many devices are well, which sites need help, and what changed in a day."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Final

from pisync_receiver.alerts.notices import Links, Notice, since, site_name
from pisync_receiver.domain.notices import FAILING, NEW, RETIRED, SILENT, TROUBLE, WELL

_MAX_SITES: Final = 20
_WORDS: Final = {FAILING: ("keeps failing", "keep failing"), SILENT: ("is silent", "are silent")}


@dataclass(kw_only=True)
class Site:
    """A site's devices by state, and since when the first of each state."""

    site: str | None
    devices: dict[str, int] = field(default_factory=dict)
    since_ms: dict[str, int | None] = field(default_factory=dict)

    @property
    def active(self) -> int:
        """Devices that were in contact at least once and are not retired."""
        return sum(count for state, count in self.devices.items() if state not in (NEW, RETIRED))

    @property
    def trouble(self) -> int:
        return sum(self.devices.get(state, 0) for state in TROUBLE)

    @property
    def need(self) -> float:
        """A site of which all devices need help stands above scattered devices."""
        return self.trouble**2 / max(self.active, 1)


def sites_of(rows: Iterable[tuple[str | None, str, int, int | None]]) -> list[Site]:
    """Return the sites from rows of site, state, number of devices and since when."""
    sites: dict[str | None, Site] = {}
    for name, state, count, since_ms in rows:
        site = sites.setdefault(name, Site(site=name))
        site.devices[state] = count
        site.since_ms[state] = since_ms
    return list(sites.values())


def daily_digest(
    sites: Iterable[Site], changes: Iterable[tuple[str, str, int]], *, zone: tzinfo, links: Links
) -> Notice:
    """Return the digest. `changes` of the last day are the state before, the state, and the number of devices."""
    known = sorted(sites, key=lambda site: (-site.need, site.site or ""))
    totals = {state: sum(site.devices.get(state, 0) for site in known) for state in (WELL, FAILING, SILENT, NEW)}
    in_need = [site for site in known if site.trouble]
    places = sum(1 for site in known if site.site is not None)
    fleet = f"{_number(sum(totals.values()), 'device')} at {_number(places, 'site')}"
    counts = ", ".join(f"{count:,} {state}" for state, count in totals.items() if count)
    if not in_need:
        title, lines = f"All is well: {fleet}", [f"{fleet}: {counts or 'none yet'}"]
    else:
        need = "1 site needs" if len(in_need) == 1 else f"{len(in_need):,} sites need"
        title = f"{need} help: {counts}"
        lines = [f"{fleet}: {counts}", *(_in_words(site, zone) for site in in_need[:_MAX_SITES])]
        if rest := in_need[_MAX_SITES:]:
            lines.append(f"and {sum(site.trouble for site in rest):,} devices at {len(rest):,} more sites")
    lines += _changed(changes)
    return Notice(kind="daily", title=title, body="\n".join(lines) + links.home())


def _in_words(site: Site, zone: tzinfo) -> str:
    parts = []
    for state in (SILENT, FAILING):
        if count := site.devices.get(state, 0):
            verb = _WORDS[state][count > 1]
            of = f"{count:,} of {_number(site.active, 'device')}"
            parts.append(f"{of} {verb}{since([site.since_ms.get(state)], zone)}")
    return f"{site_name(site.site)}: {'; '.join(parts)}"


def _changed(changes: Iterable[tuple[str, str, int]]) -> list[str]:
    """Return a line of what changed in a day; none if nothing did."""
    counts: dict[str, int] = {}
    for before, state, count in changes:
        what = _change(before, state)
        if what is not None:
            counts[what] = counts.get(what, 0) + count
    if not counts:
        return []
    return ["In the last day: " + ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))]


def _change(before: str, state: str) -> str | None:
    if state in TROUBLE:
        return {FAILING: "began to fail", SILENT: "fell silent"}[state]
    if state == WELL:
        return "recovered" if before in TROUBLE else "reported for the first time"
    return "retired" if state == RETIRED else None


def _number(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"
