"""One learner: events, export, erasure. With `-` the id comes from standard input, and so stands in no list of
processes."""

import sys
from typing import Any, Final

from pisync_receiver.api.learners import TIMELINE
from pisync_receiver.commands.client import Api
from pisync_receiver.commands.context import Context, arg, command, rows_of
from pisync_receiver.errors import WrongUsage

_ID: Final = "learner_id"
_WHOSE: Final = arg(
    "--learner-id", required=True, metavar="ID", help="the learner's id; - reads it from standard input"
)
_FLAGS: Final = tuple(flag for flag in rows_of(TIMELINE) if flag[0] != ("--learner-id",))
_ONE_PAGE: Final = {"--limit", "--cursor", "--all", "--json"}
_COLUMNS: Final = ("estimated_at", "quality", "type", "object_id", "site", "device_id", "received_at")


@command(
    'learner events --learner-id s-17 --learner-home "Nakuru Primary"',
    _WHOSE,
    *_FLAGS,
    words=2,
)
def learner_events(context: Context) -> None:
    """List one learner's events by the time they happened, newest first."""
    context.arguments.learner_id = _learner(context)
    context.pages("/api/learners/events", TIMELINE, _COLUMNS)


@command(
    'learner export --learner-id s-17 --learner-home "Nakuru Primary" --output learner.csv',
    _WHOSE,
    *(flag for flag in _FLAGS if not _ONE_PAGE.intersection(flag[0])),
    words=2,
)
def learner_export(context: Context) -> None:
    """Write every event of one learner, by default as JSON on a line of its own."""
    arguments = context.arguments
    arguments.learner_id, arguments.limit, arguments.cursor = _learner(context), None, None
    if arguments.output is None:
        arguments.format = arguments.format or "ndjson"
    context.pages("/api/learners/events", TIMELINE, _COLUMNS)


@command(
    'learner erase --learner-id s-17 --learner-home "Nakuru Primary" --dry-run',
    _WHOSE,
    arg(
        "--learner-home",
        metavar="HOME",
        help="what the id belongs to: a site, unless the app names another (default: every home that it occurs under)",
    ),
    arg("--dry-run", action="store_true", help="erase nothing; tell how much there is"),
    arg("--yes", action="store_true", help="erase without asking"),
    words=2,
)
def learner_erase(context: Context) -> None:
    """Erase everything stored of one learner, for good."""
    arguments = context.arguments
    wanted = {_ID: _learner(context), "learner_home": arguments.learner_home}
    with context.api() as api:
        planned = api.call("POST", "/api/learners/erase", {**wanted, "dry_run": True})
        if arguments.dry_run:
            context.result(f"would be erased: {_what(planned)}")
            return
        context.remark(f"This erases {_what(planned)}, for good. What devices still send of them is not stored.")
        if not arguments.yes:
            _ask(context)
        done = _erase(context, api, wanted)
    context.result(f"erased: {done['events']:,} events, {_rejected(done)}; receipt {done['receipt']}")


def _erase(context: Context, api: Api, wanted: dict[str, Any]) -> Any:
    while True:
        done = api.call("POST", "/api/learners/erase", wanted)
        if not done["more"]:
            return done
        context.remark(f"{done['events']:,} events erased")


def _what(planned: Any) -> str:
    homes = ", ".join("no home" if home is None else repr(home) for home in planned["homes"])
    return f"{planned['events']:,} events and {_rejected(planned)} of the learner of {homes}"


def _rejected(counted: Any) -> str:
    return f"{counted['rejected']:,} rejected events or conflicting versions"


def _ask(context: Context) -> None:
    if not sys.stdin.isatty():
        raise WrongUsage("there is no terminal to ask on; nothing was erased; add --yes to erase without asking")
    context.remark("Erase? Type yes:")
    if sys.stdin.readline().strip() != "yes":
        raise WrongUsage("nothing was erased")


def _learner(context: Context) -> str:
    given: str = context.arguments.learner_id
    return sys.stdin.readline().rstrip("\n") if given == "-" else given
