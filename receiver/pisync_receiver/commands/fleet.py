"""The fleet and its sites: each command is a call of the API, and its answer."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from pisync_receiver.api.fleet import INCOMPLETE, SITES
from pisync_receiver.commands.console import to_the_minute
from pisync_receiver.commands.context import JSON, Context, arg, command, rows_of

SITE: Final = arg("site", metavar="SITE", help="the site's name")


@command(
    "overview",
    JSON,
)
def overview(context: Context) -> None:
    """Show how many devices are well, how many sites need help, and what changed since yesterday."""
    answer = context.call("GET", "/api/overview")
    if context.arguments.json:
        context.rows(answer, ())
        return
    states: Mapping[str, int] = answer["devices"]
    context.result(
        f"{sum(states.values()):,} devices: " + ", ".join(f"{devices:,} {state}" for state, devices in states.items())
    )
    context.result(f"{answer['sites']:,} sites: {answer['sites_in_need']:,} in need")
    context.result(
        f"incomplete devices: {answer['incomplete']:,} ({answer['events_missing']:,} events missing), "
        f"cloned: {answer['cloned']:,}"
    )
    today = answer["today"]
    context.result(f"today: {today['runs']:,} sync runs ({today['failed']:,} failed), {today['events']:,} events")
    if answer["delay"]:
        context.result(f"events of seven days arrived within: {_delays(answer['delay'])}")
    if answer["changes"]:
        context.result("changed since yesterday:")
        context.rows([to_the_minute(row) for row in answer["changes"]], ("site", "before", "state", "devices", "since"))


@command(
    "sites --state silent",
    *rows_of(SITES),
)
def sites(context: Context) -> None:
    """List the sites, those in most need first."""
    columns = ("site", "devices", "failing", "silent", "incomplete", "need", "since", "causes")
    context.pages("/api/sites", SITES, columns, shown=_site)


@command(
    'site show "Nakuru Primary"',
    SITE,
    JSON,
    words=2,
)
def site_show(context: Context) -> None:
    """Show how a site's devices are."""
    site = context.call("GET", _path(context))
    if context.arguments.json:
        context.rows(site, ())
    else:
        context.rows([{"name": name, "value": value} for name, value in _site(site).items()], ("name", "value"))


@command(
    'site set-silent-after "Nakuru Primary" 60d',
    SITE,
    arg("time", metavar="TIME", help="12h, 30d or 8w; off: as the receiver's setting silent_after says"),
    words=2,
)
def site_set_silent_after(context: Context) -> None:
    """Set how long a site's devices may be without contact before they count as silent, for holidays say."""
    time: str = context.arguments.time
    with context.api() as api:
        site = api.call("PATCH", _path(context), {"silent_after": None if time == "off" else time})
    after = "the receiver's setting" if site["silent_after_s"] is None else time
    context.result(
        f"devices of {site['site']} count as silent after {after}; {site['silent']:,} of them are silent now"
    )


@command(
    "incomplete --site Nakuru",
    *rows_of(INCOMPLETE),
)
def incomplete(context: Context) -> None:
    """List every device of which something is missing, was rejected or conflicts."""
    columns = ("device_id", "site", "missing_count", "missing", "rejected", "conflicts", "cloned_since")
    context.pages("/api/incomplete", INCOMPLETE, columns, shown=_incomplete)


def _path(context: Context) -> str:
    return f"/api/sites/{quote(context.arguments.site, safe='')}"


def _site(row: Mapping[str, Any]) -> dict[str, Any]:
    return to_the_minute(row) | {"causes": {cause["code"]: cause["devices"] for cause in row["causes"]}}


def _incomplete(row: Mapping[str, Any]) -> dict[str, Any]:
    return to_the_minute(row) | {"missing": [f"{first}-{last}" for _, first, last in row["missing"]]}


def _delays(delays: list[dict[str, Any]]) -> str:
    total = sum(delay["events"] for delay in delays)
    return ", ".join(
        f"{'longer' if delay['hours'] is None else str(delay['hours']) + ' h'} {delay['events'] / total:.0%}"
        for delay in delays
        if total
    )
