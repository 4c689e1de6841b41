"""What usually helps, for each error code that devices report; the technician's guide says more."""

from pisync_receiver.window.i18n import gettext as _


def cause(code: str) -> str:
    """Return an error code in words."""
    return {
        "dns": _("no internet behind the link"),
        "connect": _("no connection to the receiver"),
        "timeout": _("the link is too weak"),
        "tls": _("the connection is not trusted"),
        "clock": _("the device's clock is wrong"),
        "portal": _("the network asks for a sign-in"),
        "auth": _("the device's token is refused"),
        "rejected": _("events were rejected"),
        "http_4xx": _("a gateway refuses requests"),
        "http_5xx": _("the receiver or a gateway is in trouble"),
        "storage": _("the device's card is full or failing"),
    }.get(code, code)


def advice(code: str) -> str | None:
    """Return what to do about an error code; None for an unknown code."""
    return {
        "dns": _("Try another web page on the device. If none opens, ask who runs the network."),
        "connect": _("Move the device closer or try later. If all devices of the site fail, a firewall may refuse."),
        "timeout": _("Move the device closer to the access point. It retries automatically; nothing is lost."),
        "tls": _("Check the device's date. A sign-in page or filter may answer in the receiver's place."),
        "clock": _("Give the device internet time for a minute, or set its clock."),
        "portal": _("Open a browser on the device and sign in to the network, then sync again."),
        "auth": _("Make an enrollment code for this device, and enroll it again: its id stays."),
        "rejected": _("Read the rejected events on the device's page, and tell the app's makers."),
        "http_4xx": _("Look at the gateway before the receiver: it refuses or changes requests."),
        "http_5xx": _("Look at the receiver's log and at the gateway's; devices retry automatically."),
        "storage": _("Free space on the device, or replace its card."),
    }.get(code)


def silence(devices: int, whole: bool) -> str:
    """Return what to do about silent devices; `whole` says that all of a site are silent."""
    if whole:
        return _("Call the school: is there power, is the access point on, are there holidays?")
    if devices == 1:
        return _("Ask whether the device is in use, charged and in reach of the network.")
    return _("Ask whether the devices are in use, charged and in reach of the network.")
