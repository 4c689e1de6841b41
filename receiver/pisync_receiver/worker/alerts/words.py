"""What a notice says: device ids, sites, counts and times; never what learners did."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Final

from pisync_common.times import from_ms
from pisync_receiver.worker.alerts.plan import Plan, State, Story

NO_SITE: Final = "no site"
_MOST_SITES: Final = 50
_MOST_NAMES: Final = 5
_MOST_CODES: Final = 3


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One message to operators. The title alone says enough for a telephone's lock screen."""

    title: str
    body: str
    digest: bool


def notices(plan: Plan, zone: tzinfo) -> list[Notice]:
    """The messages of a plan; times are shown in `zone`."""
    if plan.digest:
        return [_digest(plan.stories, zone)]
    return [_single(story, zone) for story in plan.stories]


def _single(story: Story, zone: tzinfo) -> Notice:
    where = f" ({story.site})" if story.site else ""
    return Notice(title=f"{story.device_id}{where} {story.state.value}", body=_history(story, zone), digest=False)


def _history(story: Story, zone: tzinfo) -> str:
    runs = "sync run" if story.failures == 1 else "sync runs in a row"
    failing = f"{story.failures:,} {runs} failed{_since(story.since_ms, zone)}"
    errors = _errors([story])
    match story.state:
        case State.FAILING | State.FAILING_AGAIN:
            return f"{failing}{errors}."
        case State.FAILED_AND_RECOVERED:
            return f"{failing}{errors}; it got through at {_time(story.at_ms, zone)}."
        case State.RECOVERED:
            return f"It got through at {_time(story.at_ms, zone)}."


def _digest(stories: Sequence[Story], zone: tzinfo) -> Notice:
    counts = Counter(story.state for story in stories)
    said = [f"{counts[state]:,} {_verb(state, counts[state])}" for state in State if counts[state]]
    sites = _by_site(stories)
    lines = [_site(site, at_site, zone) for site, at_site in sites[:_MOST_SITES]]
    if more := sites[_MOST_SITES:]:
        lines.append(f"and {sum(len(at_site) for _, at_site in more):,} devices at {len(more):,} more sites")
    return Notice(title=f"{_devices(len(stories))}: {', '.join(said)}", body="\n".join(lines), digest=True)


def _by_site(stories: Sequence[Story]) -> list[tuple[str, list[Story]]]:
    """Sites with their stories, the most first."""
    sites: dict[str, list[Story]] = {}
    for story in stories:
        sites.setdefault(story.site or NO_SITE, []).append(story)
    return sorted(sites.items(), key=lambda item: (-len(item[1]), item[0]))


def _site(site: str, stories: Sequence[Story], zone: tzinfo) -> str:
    parts = []
    for state in State:
        if told := [story for story in stories if story.state is state]:
            parts.append(_group(state, told, zone))
    return f"{site}: {'; '.join(parts)}"


def _group(state: State, stories: Sequence[Story], zone: tzinfo) -> str:
    text = f"{_devices(len(stories))} {_verb(state, len(stories))}"
    if state is not State.RECOVERED:
        begun = [story.since_ms for story in stories if story.since_ms is not None]
        text += _since(min(begun, default=None), zone) + _errors(stories)
    if len(stories) <= _MOST_NAMES:
        text += f": {', '.join(story.device_id for story in stories)}"
    return text


def _verb(state: State, count: int) -> str:
    return state.value if count == 1 else state.value.replace("keeps", "keep")


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count:,} devices"


def _since(ms: int | None, zone: tzinfo) -> str:
    return "" if ms is None else f" since {_time(ms, zone)}"


def _time(ms: int, zone: tzinfo) -> str:
    return from_ms(ms).astimezone(zone).strftime("%Y-%m-%d %H:%M %Z")


def _errors(stories: Iterable[Story]) -> str:
    """` (mostly dns, tls)`: the codes of most devices."""
    codes = Counter(code for story in stories for code in json.loads(story.last_errors or "{}"))
    most = [code for code, _ in sorted(codes.items(), key=lambda item: (-item[1], item[0]))[:_MOST_CODES]]
    return f" ({'mostly ' if len(codes) > 1 else ''}{', '.join(most)})" if most else ""
