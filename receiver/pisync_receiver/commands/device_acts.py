"""Acts on single devices, notes, and what a technician looks at: each command is a call of the API, and its answer."""

from typing import Final
from urllib.parse import quote

from pisync_common.errors import RuleError
from pisync_common.rules import check_id
from pisync_receiver.api.device_acts import ROWS
from pisync_receiver.api.notes import NOTES
from pisync_receiver.commands.context import Context, arg, command, rows_of
from pisync_receiver.errors import WrongUsage
from pisync_receiver.http.params import NO_QUERY

DEVICE: Final = arg("device", metavar="DEVICE", help="the device's id")
SITE: Final = arg("site", metavar="SITE", help="the name of the site")
TEXT: Final = arg("text", metavar="TEXT", help="what to write, up to 2,000 characters")
_NOTE: Final = ("id", "at", "author", "text")


def device_path(context: Context) -> str:
    """Return the path of the device that the command line names. Raises WrongUsage."""
    return f"/api/devices/{quoted_id(context)}"


def quoted_id(context: Context) -> str:
    """Return the device's id as a part of a path. Raises WrongUsage."""
    try:
        return quote(check_id("DEVICE", context.arguments.device), safe="")
    except RuleError as error:
        raise WrongUsage(str(error)) from error


def _site_path(context: Context) -> str:
    return f"/api/sites/{quote(context.arguments.site, safe='')}"


@command("device sync pibook-0042", DEVICE, words=2)
def device_sync(context: Context) -> None:
    """Ask a device to deliver everything at once, when it next makes contact."""
    device = context.call("POST", f"{device_path(context)}/sync")
    context.result(f"{device['device_id']} is asked for a sync when it next makes contact")


@command("device revoke pibook-0042", DEVICE, words=2)
def device_revoke(context: Context) -> None:
    """End all tokens of a device at once; to come back it must enroll again."""
    device = context.call("POST", f"{device_path(context)}/revoke")
    context.result(f"{device['device_id']} is refused from now on; its events are kept; it must enroll again")


@command('device note pibook-0042 "screen broken, at the workshop"', DEVICE, TEXT, words=2)
def device_note(context: Context) -> None:
    """Write a note about a device."""
    note = context.call("POST", f"{device_path(context)}/notes", text=context.arguments.text)
    context.result(f"note {note['id']} is kept")


@command("device notes pibook-0042", DEVICE, *rows_of(NOTES), words=2)
def device_notes(context: Context) -> None:
    """Show what was written about a device, newest first."""
    context.pages(f"{device_path(context)}/notes", NOTES, _NOTE)


@command('site note "Nakuru Primary" "no power until Monday"', SITE, TEXT, words=2)
def site_note(context: Context) -> None:
    """Write a note about a site."""
    note = context.call("POST", f"{_site_path(context)}/notes", text=context.arguments.text)
    context.result(f"note {note['id']} is kept")


@command('site notes "Nakuru Primary"', SITE, *rows_of(NOTES), words=2)
def site_notes(context: Context) -> None:
    """Show what was written about a site, newest first."""
    context.pages(f"{_site_path(context)}/notes", NOTES, _NOTE)


@command("device conflicts pibook-0042 --json", DEVICE, *rows_of(ROWS), words=2)
def device_conflicts(context: Context) -> None:
    """Show the versions of events that a device and its clone sent under one seq."""
    context.pages(f"{device_path(context)}/conflicts", ROWS, ("stream", "seq", "versions"))


@command("device rejected pibook-0042", DEVICE, *rows_of(ROWS), words=2)
def device_rejected(context: Context) -> None:
    """Show what was rejected of a device, and why."""
    context.pages(f"{device_path(context)}/rejected", ROWS, ("stream", "seq", "code", "detail", "received_at"))


@command("device sites pibook-0042", DEVICE, *rows_of(NO_QUERY), words=2)
def device_sites(context: Context) -> None:
    """Show where a device is and was, newest first."""
    context.pages(f"{device_path(context)}/sites", NO_QUERY, ("site", "since", "until"))


@command("suspicious", *rows_of(ROWS))
def suspicious(context: Context) -> None:
    """List the devices that seem to be several, or were used after their end."""
    context.pages("/api/suspicious", ROWS, ("device_id", "site", "reasons"))
