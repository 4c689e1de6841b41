"""What an admin does to a device: each act has a page that says what will happen, and a form."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pisync_receiver.errors import Problem
from pisync_receiver.http.auth import Access
from pisync_receiver.http.responses import Reply
from pisync_receiver.window.calls import path_of
from pisync_receiver.window.fields import lines
from pisync_receiver.window.i18n import gettext as _
from pisync_receiver.window.sheets import command_of
from pisync_receiver.window.view import View, page

Form = Mapping[str, str]
PATH: Final = "/devices/{device_id}/{act}"
CODE_DAYS: Final = 7
SITES: Final = 1_000
"""Sites that the form for a move proposes."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """An act: `run` calls the API and answers."""

    run: Callable[[View, str, Form], Awaitable[Reply]]
    fields: tuple[str, ...] = ()
    danger: bool = False


def words_of(act: str, device_id: str) -> dict[str, str]:
    """Return an act's name, the title of its page, what it does, and the words on its button."""
    words = {
        "move": (
            _("Move"),
            _("Move %(device)s to another site"),
            _("Events and sync runs keep the site of the time at which they happened."),
            _("Move it"),
        ),
        "rename": (
            _("Rename"),
            _("Rename %(device)s"),
            _("The label is for people; the device's id stays."),
            _("Rename it"),
        ),
        "retire": (
            _("Retire"),
            _("Retire %(device)s"),
            _("It no longer counts as silent or failing, and all its tokens end. What it sent stays."),
            _("Retire it"),
        ),
        "return": (
            _("Bring back"),
            _("Bring %(device)s back"),
            _("It counts again. Its tokens stay ended: it needs an enrollment code to come back."),
            _("Bring it back"),
        ),
        "revoke": (
            _("Revoke"),
            _("Revoke the tokens of %(device)s"),
            _("The receiver refuses it from now on. It keeps what it recorded, and delivers after it enrolls again."),
            _("Revoke its tokens"),
        ),
        "replace": (
            _("Replace"),
            _("Replace %(device)s"),
            _(
                "For a lost, broken or stolen device: all its tokens end now, and a code is made with which another "
                "device continues under this id."
            ),
            _("Revoke its tokens and make a code"),
        ),
        "rotate": (
            _("New token"),
            _("Give %(device)s a new token"),
            _(
                "A code is made for this device. When it enrolls with the code it gets a new token, and the old token "
                "works for one more day."
            ),
            _("Make a code"),
        ),
        "sync": (
            _("Ask for a sync"),
            _("Ask %(device)s to sync"),
            _("At its next contact it delivers everything at once. Until then the request is pending."),
            _("Ask for a sync"),
        ),
    }
    name, title, about, button = words[act]
    return {"name": name, "title": title % {"device": device_id}, "about": about, "button": button}


async def _change(view: View, device_id: str, done: str, **changes: Any) -> Reply:
    await view.send("PATCH", path_of("/api/devices/{}", device_id), changes)
    return view.redirect(path_of("/devices/{}", device_id), done=done)


async def _move(view: View, device_id: str, form: Form) -> Reply:
    return await _change(view, device_id, "moved", site=form.get("site", "").strip())


async def _rename(view: View, device_id: str, form: Form) -> Reply:
    return await _change(view, device_id, "renamed", label=form.get("label", "").strip())


async def _retire(view: View, device_id: str, _form: Form) -> Reply:
    return await _change(view, device_id, "retired", retired=True)


async def _return(view: View, device_id: str, _form: Form) -> Reply:
    return await _change(view, device_id, "returned", retired=False)


async def _revoke(view: View, device_id: str, _form: Form) -> Reply:
    await view.send("POST", path_of("/api/devices/{}/revoke", device_id))
    return view.redirect(path_of("/devices/{}", device_id), done="revoked")


async def _sync(view: View, device_id: str, _form: Form) -> Reply:
    await view.send("POST", path_of("/api/devices/{}/sync", device_id))
    return view.redirect(path_of("/devices/{}", device_id), done="sync-asked")


async def _replace(view: View, device_id: str, form: Form) -> Reply:
    await view.send("POST", path_of("/api/devices/{}/revoke", device_id))
    return await _rotate(view, device_id, form)


async def _rotate(view: View, device_id: str, _form: Form) -> Reply:
    device = (await view.get(path_of("/api/devices/{}", device_id))).value
    wanted = {"device_id": device_id, "site": device["site"], "expires_in_s": CODE_DAYS * 86_400}
    made = await view.send("POST", "/api/enrollment-codes", wanted)
    line = f"pisync enroll https://… --code {made['code']} --device-id {device_id}"
    if made["enroll_file"] is not None:
        line = command_of(made["enroll_file"])
    return view.render("code.html", device=device, made=made, line=line)


ACTS: Final[Mapping[str, Act]] = {
    "move": Act(run=_move, fields=("site",)),
    "rename": Act(run=_rename, fields=("label",)),
    "sync": Act(run=_sync),
    "rotate": Act(run=_rotate),
    "replace": Act(run=_replace, danger=True),
    "revoke": Act(run=_revoke, danger=True),
    "retire": Act(run=_retire, danger=True),
    "return": Act(run=_return),
}


def acts_of(device: Mapping[str, Any]) -> list[str]:
    """Return the acts that make sense for a device."""
    if device["retired_at"] is not None:
        return ["return", "rename"]
    return [act for act in ACTS if act != "return"]


@page("GET", PATH, Access.ADMIN)
async def confirm(view: View) -> Reply:
    """What an act will do, and the form for it."""
    act = _known(view)
    device = (await view.get(path_of("/api/devices/{}", view.path["device_id"]))).value
    sites = []
    if "site" in ACTS[act].fields:
        sites = (await view.get("/api/sites", sort="site", limit=SITES)).value
    return view.render(
        "act.html",
        sites=[site["site"] for site in sites if site["site"] is not None],
        device=device,
        act=ACTS[act],
        name=act,
        words_of=words_of(act, device["label"] or device["device_id"]),
    )


@page("POST", PATH, Access.ADMIN)
async def act(view: View) -> Reply:
    """Do it."""
    return await ACTS[_known(view)].run(view, view.path["device_id"], await view.form())


@page("POST", "/devices/{device_id}/notes", Access.ADMIN)
async def add_note(view: View) -> Reply:
    """Write a note about a device."""
    device_id = view.path["device_id"]
    text = lines(await view.form(), "text")
    await view.send("POST", path_of("/api/devices/{}/notes", device_id), {"text": text})
    return view.redirect(path_of("/devices/{}", device_id), done="noted")


@page("GET", "/devices/{device_id}/codes", Access.ADMIN)
async def codes(view: View) -> Reply:
    """The enrollment codes that are for a device, or let it in."""
    device_id = view.path["device_id"]
    device = (await view.get(path_of("/api/devices/{}", device_id))).value
    every = (await view.get("/api/enrollment-codes")).value
    own = [code for code in every if code["device_id"] == device_id or device_id in code["devices"]]
    return view.render("codes.html", device=device, codes=own)


@page("POST", "/devices/{device_id}/codes/{code_id}/end", Access.ADMIN)
async def end_code(view: View) -> Reply:
    """End an enrollment code."""
    await view.send("POST", path_of("/api/enrollment-codes/{}/end", view.path["code_id"]))
    return view.redirect(path_of("/devices/{}/codes", view.path["device_id"]), done="code-ended")


def _known(view: View) -> str:
    """Return the act that the path names. Raises Problem 404."""
    if (act := view.path["act"]) not in ACTS:
        raise Problem(404, "not_found", "there is no such act")
    return act


PAGES: Final = (codes, add_note, end_code, confirm, act)
