"""The daily digest: how many devices are well, which sites need help, and what changed in a day."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import tzinfo
from typing import Final

from msgspec.structs import asdict

from pisync_common.times import parse_ms
from pisync_receiver.alerts.notices import Links, Notice, mostly, number, since, site_name
from pisync_receiver.domain.fleet import TROUBLE, Change, Overview, SiteRecord, State

_MAX_SITES: Final = 20
_WORDS: Final = (("silent", "is silent", "are silent"), ("failing", "keeps failing", "keep failing"))


def daily_digest(sites: Sequence[SiteRecord], overview: Overview, *, zone: tzinfo, links: Links) -> Notice:
    """Return the digest; `sites` come in the order of their need."""
    counts = {state: count for state, count in asdict(overview.devices).items() if count and state != "retired"}
    fleet = f"{number(sum(counts.values()), 'device')} at {number(overview.sites, 'site')}"
    totals = ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "none in use"
    troubled = [site for site in sites if site.silent + site.failing]
    lines = [f"{fleet}: {totals}", *(_in_words(site, zone) for site in troubled[:_MAX_SITES])]
    if rest := troubled[_MAX_SITES:]:
        devices = number(sum(site.silent + site.failing for site in rest), "device")
        lines.append(f"and {devices} at {number(len(rest), 'more site')}")
    if overview.incomplete:
        missing = number(overview.events_missing, "missing event")
        lines.append(f"{number(overview.incomplete, 'incomplete device')}, {missing}")
    if changed := _changed(overview.changes):
        lines.append(f"In the last day: {changed}")
    title = f"All is well: {fleet}" if not troubled else f"{_need(overview.sites_in_need)}: {totals}"
    return Notice(kind="daily", title=title, body="\n".join(lines) + links.home())


def _need(sites: int) -> str:
    return {0: "Some devices need help", 1: "1 site needs help"}.get(sites, f"{sites:,} sites need help")


def _in_words(site: SiteRecord, zone: tzinfo) -> str:
    """Return a line such as `Nakuru: 30 of 34 devices are silent, 1 keeps failing since 2026-11-24 03:00 EAT (dns)`."""
    found = [(count, one if count == 1 else more) for state, one, more in _WORDS if (count := getattr(site, state))]
    (first, verb), *others = found
    parts = [f"{first:,} of {number(site.devices - site.retired, 'device')} {verb}"]
    parts += [f"{count:,} {verb}" for count, verb in others]
    begun = since([None if site.since is None else parse_ms(site.since)], zone)
    return f"{site_name(site.site)}: {', '.join(parts)}{begun}{mostly([cause.code for cause in site.causes])}"


def _changed(changes: Iterable[Change]) -> str:
    counts: Counter[str] = Counter()
    for change in changes:
        if (what := _what(change.before, change.state)) is not None:
            counts[what] += change.devices
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))


def _what(before: State, state: State) -> str | None:
    if state == "well":
        return "recovered" if before in TROUBLE else "reported for the first time"
    if state in TROUBLE and before == "new":
        return None  # watched for the first time, and so already
    return {"failing": "began to fail", "silent": "fell silent", "retired": "retired"}.get(state)
