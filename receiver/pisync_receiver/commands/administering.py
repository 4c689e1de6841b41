"""Tokens, enrollment codes and devices: each command is a call of the API, and its answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pisync_common import settings as values
from pisync_receiver.api.devices import DEVICES
from pisync_receiver.api.events import EVENTS
from pisync_receiver.api.notices import NOTICES, TRANSITIONS
from pisync_receiver.api.schemas import CODES_MAX
from pisync_receiver.api.sums import ACTIVITY, SUMS
from pisync_receiver.api.sync_events import FAILURES, HISTORY
from pisync_receiver.api.tokens import TOKENS
from pisync_receiver.commands.console import to_the_minute
from pisync_receiver.commands.context import JSON, Context, arg, checked, command, rows_of
from pisync_receiver.commands.device_acts import DEVICE, device_path, quoted_id
from pisync_receiver.errors import ReceiverError, WrongUsage
from pisync_receiver.http.params import NO_QUERY

ID: Final = arg("id", metavar="ID", help="its number, as the list shows it")


@command(
    'token create --scope viewer --site "Nakuru Primary" --label "district office"',
    arg(
        "--scope",
        "--role",
        required=True,
        choices=("admin", "viewer", "metrics", "device"),
        help="admin changes things, viewer reads, metrics reads /metrics alone, device is one device's own",
    ),
    arg("--label", metavar="TEXT", help="what the token is for, as `token list` shows it"),
    arg("--site", metavar="NAME", action="append", help="limit an admin or viewer to this site; may be repeated"),
    arg("--device-id", metavar="ID", help="with --scope device: whose token it is"),
    arg("--expires", metavar="TIME", help="how long the token works (default: until it is revoked)"),
    words=2,
)
def token_create(context: Context) -> None:
    """Create a token and print it, this once."""
    arguments = context.arguments
    made = context.call_first(
        "POST",
        "/api/tokens",
        scope=arguments.scope,
        label=arguments.label,
        sites=arguments.site,
        device_id=arguments.device_id,
        expires_in_s=None if arguments.expires is None else context.seconds("--expires", arguments.expires),
    )
    _show_token(context, made)


@command(
    "token list --scope viewer",
    *rows_of(TOKENS),
    words=2,
)
def token_list(context: Context) -> None:
    """Show every token, without the secrets, which are not kept."""
    columns = ("id", "scope", "label", "sites", "device_id", "created_at", "expires_at", "revoked_at", "last_refused")
    context.pages("/api/tokens", TOKENS, columns)


@command(
    "token revoke 12",
    ID,
    words=2,
)
def token_revoke(context: Context) -> None:
    """End a token at once."""
    token = context.call("POST", f"/api/tokens/{_number(context.arguments.id)}/revoke")
    context.result(f"token {token['id']} is revoked and is refused from now on")


@command(
    "token rotate 12 --overlap 7d",
    ID,
    arg("--overlap", metavar="TIME", default="24h", help="how long the old token works on (default: 24h)"),
    arg("--label", metavar="TEXT", help="the new token's label (default: the old token's)"),
    words=2,
)
def token_rotate(context: Context) -> None:
    """Create a token that takes over from another, print it, and let the old one end after an overlap."""
    arguments = context.arguments
    path = f"/api/tokens/{_number(arguments.id)}/rotate"
    made = context.call("POST", path, overlap_s=context.seconds("--overlap", arguments.overlap), label=arguments.label)
    _show_token(context, made)
    context.remark(f"Token {arguments.id} works on for {arguments.overlap}.")


@command(
    'enrollment create --uses 30 --expires 7d --site "Nakuru Primary"',
    arg("--uses", metavar="N", default="1", help="how many devices may use the code (default: 1)"),
    arg("--expires", metavar="TIME", default="7d", help="how long the code works (default: 7d)"),
    arg("--site", metavar="NAME", help="the school or place that its devices belong to"),
    arg("--label", metavar="TEXT", help="what the code is for, as `enrollment list` shows it"),
    arg("--device-id", metavar="ID", help="the only device the code is for; it may be enrolled already"),
    arg("--count", metavar="N", help="how many such codes to create, up to 200"),
    arg(
        "--file",
        metavar="FOLDER",
        type=Path,
        help="also write pisync-enroll.toml for each code into a folder of its own",
    ),
    words=2,
)
def enrollment_create(context: Context) -> None:
    """Create a code for `pisync enroll`, or several, and print it, this once."""
    arguments = context.arguments
    made = context.call_first(
        "POST",
        "/api/enrollment-codes",
        uses=checked("--uses", values.integer(1, 1_000_000), arguments.uses),
        expires_in_s=context.seconds("--expires", arguments.expires),
        site=arguments.site,
        device_id=arguments.device_id,
        label=arguments.label,
        count=None if arguments.count is None else checked("--count", values.integer(1, CODES_MAX), arguments.count),
    )
    codes = made if isinstance(made, list) else [made]
    for each in codes:
        context.result(each["code"])
    record = codes[0]["record"]
    what = f"This is code {record['id']}," if len(codes) == 1 else f"These are {len(codes)} codes, each"
    devices = "1 device" if record["uses"] == 1 else f"{record['uses']:,} devices"
    context.remark(
        f"{what} good for {devices} until {record['expires_at']}. On a device: pisync enroll URL --code CODE"
    )
    if arguments.file is not None:
        _write_enroll_files(context, arguments.file, codes)


@command(
    "enrollment list --json",
    *rows_of(NO_QUERY),
    words=2,
)
def enrollment_list(context: Context) -> None:
    """Show every enrollment code and the devices it let in."""
    columns = (
        "id",
        "label",
        "site",
        "device_id",
        "uses",
        "uses_left",
        "created_at",
        "expires_at",
        "ended_at",
        "devices",
    )
    context.pages("/api/enrollment-codes", NO_QUERY, columns)


@command(
    "enrollment end 3",
    ID,
    words=2,
)
def enrollment_end(context: Context) -> None:
    """End an enrollment code at once."""
    code = context.call("POST", f"/api/enrollment-codes/{_number(context.arguments.id)}/end")
    context.result(f"code {code['id']} has ended; devices that it let in keep their tokens")


@command(
    "devices --silent-for 3d",
    *rows_of(DEVICES),
)
def devices(context: Context) -> None:
    """List the devices and the last contact of each."""
    context.pages(
        "/api/devices",
        DEVICES,
        ("device_id", "label", "site", "state", "since", "incomplete", "last_contact", "cloned_since"),
        shown=to_the_minute,
    )


@command(
    "device show pibook-0042",
    DEVICE,
    JSON,
    words=2,
)
def device_show(context: Context) -> None:
    """Show what is known of a device."""
    device = context.call("GET", device_path(context))
    if context.arguments.json:
        context.rows(device, ())
    else:
        context.rows([{"name": name, "value": value} for name, value in device.items()], ("name", "value"))


@command(
    'device move pibook-0042 "Nakuru Primary"',
    DEVICE,
    arg("site", metavar="SITE", help="the school or place it belongs to now"),
    arg("--since", metavar="TIME", help="when it moved: 2026-11-23T10:00:00Z (default: now)"),
    words=2,
)
def device_move(context: Context) -> None:
    """Move a device to another site; what happened earlier keeps its site."""
    device = context.call(
        "PATCH", device_path(context), site=context.arguments.site, site_since=context.arguments.since
    )
    context.result(f"{device['device_id']} belongs to {device['site']}; what happened earlier keeps its site")


@command(
    'device rename pibook-0042 "library, left shelf"',
    DEVICE,
    arg("label", metavar="LABEL", help="what people call it; its id stays"),
    words=2,
)
def device_rename(context: Context) -> None:
    """Change what people call a device."""
    device = context.call("PATCH", device_path(context), label=context.arguments.label)
    context.result(f"{device['device_id']} is called {device['label']}")


@command(
    "device retire pibook-0042",
    DEVICE,
    arg("--undo", action="store_true", help="bring it back; it must enroll again"),
    words=2,
)
def device_retire(context: Context) -> None:
    """Retire a device and revoke its tokens; its events are kept."""
    device = context.call("PATCH", device_path(context), retired=not context.arguments.undo)
    if device["retired_at"] is None:
        context.result(f"{device['device_id']} is not retired any more; it must enroll again")
    else:
        context.result(f"{device['device_id']} is retired; its tokens are refused from now on, its events are kept")


@command(
    "history pibook-0042 --since 7d",
    DEVICE,
    *rows_of(HISTORY),
)
def history(context: Context) -> None:
    """Show a device's sync events, newest first."""
    columns = ("timestamp", "total_files_synced", "total_errors", "internet_speed", "errors", "received_at", "id")
    context.pages(f"/api/sync-event/device/{quoted_id(context)}/sync-history", HISTORY, columns)


@command(
    "failures --min-failures 5",
    *rows_of(FAILURES),
)
def failures(context: Context) -> None:
    """List the devices that keep failing, worst first."""
    context.pages(
        "/api/sync-event/devices/repeated-failures",
        FAILURES,
        (
            "device_id",
            "site",
            "consecutive_failures",
            "total_failures",
            "failing_since",
            "last_success_at",
            "last_errors",
        ),
    )


@command(
    "completeness pibook-0042",
    DEVICE,
    JSON,
)
def completeness(context: Context) -> None:
    """Show for each stream of a device what is stored and what is missing."""
    answer = context.call("GET", f"{device_path(context)}/completeness")
    if context.arguments.json:
        context.rows(answer, ())
        return
    columns = ("stream", "complete", "watermark", "highest", "stored", "rejected", "missing_count", "missing")
    context.rows(answer["streams"], columns)
    if answer["cloned_since"] is not None:
        context.remark(f"Two devices have used this identity since {answer['cloned_since']}: look for a cloned card.")


@command(
    "events --device-id pibook-0042 --since 1d --json",
    *rows_of(EVENTS),
)
def events(context: Context) -> None:
    """List stored progress events in the order of arrival."""
    columns = ("id", "device_id", "seq", "type", "learner_id", "object_id", "occurred_at", "received_at")
    context.pages("/api/events", EVENTS, columns)


def _write_enroll_files(context: Context, folder: Path, codes: Sequence[dict[str, Any]]) -> None:
    if codes[0]["enroll_file"] is None:
        raise ReceiverError(
            "the codes are made, but no files: the receiver does not know the address at which devices reach it; set "
            "public_url, or call it by that address with --url"
        )
    for each in codes:
        place = folder / f"code-{each['record']['id']}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "pisync-enroll.toml").write_text(each["enroll_file"], encoding="utf-8")
    context.remark(f"A pisync-enroll.toml for each is in {folder}: it holds the code, so keep it secret.")


@command(
    "transitions --since 1d",
    *rows_of(TRANSITIONS),
)
def transitions(context: Context) -> None:
    """List the devices that went from one state to another, newest first."""
    context.pages("/api/transitions", TRANSITIONS, ("at", "device_id", "site", "before", "state", "since"))


@command(
    "notices --since 7d",
    *rows_of(NOTICES),
)
def notices(context: Context) -> None:
    """List the notices that were made, newest first."""
    context.pages("/api/notices", NOTICES, ("made_at", "target", "sent_at", "kind", "title"))


@command(
    "causes --since 7d",
    *rows_of(SUMS),
)
def causes(context: Context) -> None:
    """Show the errors of sync runs by day, site and code."""
    context.pages("/api/causes", SUMS, ("day", "site", "code", "errors"))


@command(
    "runs --since 7d",
    *rows_of(SUMS),
)
def runs(context: Context) -> None:
    """Show sync runs by day and site: all, failed, and files synced."""
    context.pages("/api/runs", SUMS, ("day", "site", "runs", "failed", "files"))


@command(
    'speeds --site "Nakuru Primary"',
    *rows_of(SUMS),
)
def speeds(context: Context) -> None:
    """Show measured speeds by day and site."""
    context.pages("/api/speeds", SUMS, ("day", "site", "median_mbit_s", "runs"))


@command(
    "activity --since 7d --group day,type",
    *rows_of(ACTIVITY),
)
def activity(context: Context) -> None:
    """Show how many progress events happened, by day, site, type and object."""
    context.pages("/api/activity", ACTIVITY, ("day", "site", "type", "object_id", "events"))


def _show_token(context: Context, made: dict[str, Any]) -> None:
    record = made["record"]
    context.result(made["token"])
    context.remark(f"This is {record['scope']} token {record['id']}. It is shown this once: keep it secret.")


def _number(value: str) -> str:
    if value.startswith(("psa_", "psv_", "psd_", "psm_")):
        raise WrongUsage("that is a token itself, not its id: keep it secret; `token list` shows the ids")
    return str(checked("ID", values.integer(1), value))
