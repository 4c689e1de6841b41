"""What pages call things: states, flags, and the results of acts."""

from typing import Final

from pisync_receiver.window.i18n import gettext as _

STATES: Final = ("failing", "silent", "new", "well", "retired")
"""In the order in which pages count them."""


def state(name: str) -> str:
    """Return the name of a state."""
    return {
        "well": _("well"),
        "failing": _("failing"),
        "silent": _("silent"),
        "new": _("new"),
        "retired": _("retired"),
    }.get(name, name)


def state_meaning(name: str) -> str:
    """Return what a state means, in a sentence."""
    return {
        "well": _("In contact, and its sync runs succeed."),
        "failing": _("In contact, but its last sync runs have all failed."),
        "silent": _("No contact for longer than expected at its site."),
        "new": _("Enrolled, and never in contact yet."),
        "retired": _("Taken out of use; its tokens are revoked."),
    }.get(name, "")


def suspicion(code: str) -> str:
    """Return why a device is suspicious."""
    return {
        "cloned": _("two devices use its identity"),
        "enrolled_again": _("its id was enrolled again"),
        "used_after_end": _("its token was used after its end"),
    }.get(code, code)


def done(name: str) -> str | None:
    """Return what an act did, for the page that follows it; None for an unknown act."""
    return {
        "moved": _("The device was moved."),
        "renamed": _("The device was renamed."),
        "retired": _("The device was retired. Its tokens end within two seconds."),
        "returned": _("The device is in use again. It needs a new enrollment code."),
        "revoked": _("All tokens of the device were revoked. They end within two seconds."),
        "sync-asked": _("The device is asked to sync at its next contact."),
        "code-ended": _("The enrollment code was ended."),
        "noted": _("The note was added."),
        "silent-after": _("The site's time until silence was changed."),
    }.get(name)
