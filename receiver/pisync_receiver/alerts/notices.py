"""The text of notices: device ids, sites, counts, times and error codes; never what learners did."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from enum import Enum
from itertools import groupby
from typing import Final

from pisync_common.times import from_ms
from pisync_receiver.alerts.rules import FAILING, Crossing
from pisync_receiver.domain.records import errors_of

NO_SITE: Final = "no site"
_MAX_SITES: Final = 50
_MAX_DEVICES: Final = 5
_MAX_CODES: Final = 3


class State(Enum):
    """What happened to a device since the last notice of it."""

    FAILING = "keeps failing"
    RECOVERED = "recovered"
    FAILED_AND_RECOVERED = "failed and recovered"
    FAILING_AGAIN = "recovered and keeps failing again"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """The crossings of one device, summarized."""

    device_id: str
    site: str
    state: State
    since_ms: int | None
    codes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One message to operators. The title alone says enough for a phone's lock screen."""

    title: str
    body: str


def notices(pending: Iterable[Crossing], *, digest: bool, zone: tzinfo) -> list[Notice]:
    """Return one notice of all devices (`digest`) or one for each; times are shown in `zone`."""
    ordered = sorted(pending, key=lambda crossing: (crossing.device_id, crossing.id))
    alerts = [_alert(list(group)) for _, group in groupby(ordered, key=lambda crossing: crossing.device_id)]
    if digest:
        return [Notice(title=f"{_devices(len(alerts))}: {_counts(alerts)}", body=_by_site(alerts, zone))]
    return [Notice(title=_title(alert), body=_by_site([alert], zone)) for alert in alerts]


def _title(alert: Alert) -> str:
    return f"{alert.device_id} ({alert.site}) {alert.state.value}"


def _alert(crossings: Sequence[Crossing]) -> Alert:
    last = crossings[-1]
    streak = next((crossing for crossing in reversed(crossings) if crossing.kind == FAILING), last)
    both = len({crossing.kind for crossing in crossings}) > 1
    if last.kind == FAILING:
        state = State.FAILING_AGAIN if both else State.FAILING
    else:
        state = State.FAILED_AND_RECOVERED if both else State.RECOVERED
    return Alert(
        device_id=last.device_id,
        site=last.site or NO_SITE,
        state=state,
        since_ms=streak.failing_since_ms,
        codes=tuple(errors_of(streak.last_errors)),
    )


def _counts(alerts: Sequence[Alert]) -> str:
    counts = Counter(alert.state for alert in alerts)
    return ", ".join(f"{counts[state]:,} {_verb(state, counts[state])}" for state in State if counts[state])


def _by_site(alerts: Sequence[Alert], zone: tzinfo) -> str:
    """Return a line for each site, the largest first."""
    sites: dict[str, list[Alert]] = {}
    for alert in alerts:
        sites.setdefault(alert.site, []).append(alert)
    by_size = sorted(sites.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [f"{site}: {_by_state(at_site, zone)}" for site, at_site in by_size[:_MAX_SITES]]
    if rest := by_size[_MAX_SITES:]:
        lines.append(f"and {sum(len(at_site) for _, at_site in rest):,} devices at {len(rest):,} more sites")
    return "\n".join(lines)


def _by_state(alerts: Sequence[Alert], zone: tzinfo) -> str:
    by_state = {state: [alert for alert in alerts if alert.state is state] for state in State}
    return "; ".join(_group(state, group, zone) for state, group in by_state.items() if group)


def _group(state: State, alerts: Sequence[Alert], zone: tzinfo) -> str:
    text = f"{_devices(len(alerts))} {_verb(state, len(alerts))}"
    if state is not State.RECOVERED:
        text += _since(alerts, zone) + _codes(alerts)
    if len(alerts) <= _MAX_DEVICES:
        text += f": {', '.join(alert.device_id for alert in alerts)}"
    return text


def _since(alerts: Sequence[Alert], zone: tzinfo) -> str:
    begun = [alert.since_ms for alert in alerts if alert.since_ms is not None]
    if not begun:
        return ""
    try:
        return from_ms(min(begun)).astimezone(zone).strftime(" since %Y-%m-%d %H:%M %Z")
    except OverflowError:  # a damaged row must not hold up the notices of other devices
        return " since an unknown time"


def _codes(alerts: Sequence[Alert]) -> str:
    """Return ` (mostly dns, tls)`, the codes of most devices first."""
    codes = Counter(code for alert in alerts for code in alert.codes)
    most = [code for code, _ in sorted(codes.items(), key=lambda item: (-item[1], item[0]))[:_MAX_CODES]]
    return f" ({'mostly ' if len(codes) > 1 else ''}{', '.join(most)})" if most else ""


def _verb(state: State, count: int) -> str:
    return state.value if count == 1 else state.value.replace("keeps", "keep")


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count:,} devices"
