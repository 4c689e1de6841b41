"""Where notices go: the log, and a notification service for each Apprise URL."""

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Final, Protocol

from pisync_common.errors import SettingError
from pisync_receiver.errors import MissingExtra, Unavailable
from pisync_receiver.logs import fields

if TYPE_CHECKING:
    from apprise.plugins.base import NotifyBase

log = logging.getLogger("pisync_receiver.alerts")

LOG: Final = "log"
"""The target that every notice has: the record of what was sent."""


class ServiceUnavailable(Unavailable):
    """A notification service did not accept a notice; it stays in the database."""

    code = "service_unavailable"


class Service(Protocol):
    """Accepts notices. `target` and `name` identify it without its secrets."""

    @property
    def target(self) -> str: ...
    @property
    def name(self) -> str: ...
    async def send(self, title: str, body: str) -> None:
        """Raises ServiceUnavailable if the service did not accept the notice."""
        ...


class LogService:
    """A `Service` that writes notices to the receiver's log."""

    target = name = LOG

    async def send(self, title: str, body: str) -> None:
        """See `Service`."""
        log.warning(title, extra=fields(alert=body))


class AppriseService:
    """A `Service` behind one Apprise URL."""

    def __init__(self, url: str, position: int) -> None:
        """`position` counts the URLs of the setting from 1: messages name a URL by it and never show it.

        Raises MissingExtra if Apprise is not installed, SettingError for a URL it does not know.
        """
        try:
            import apprise
        except ImportError as error:
            raise MissingExtra("alerts", error) from error
        asset = apprise.AppriseAsset(app_id="PiSync", app_desc="PiSync", app_url="", secure_logging=True)
        plugin = apprise.Apprise.instantiate(url, asset=asset)
        if plugin is None:
            raise SettingError(
                f"alert_urls: Apprise does not know URL number {position}; nothing was sent. It lists the URLs it "
                "knows: apprise --details"
            )
        if "overflow=" not in url:
            # One notice stays one message; its end matters least.
            plugin.overflow_mode = apprise.OverflowMode.TRUNCATE
        self._plugin: NotifyBase = plugin
        self.target = hashlib.sha256(url.encode()).hexdigest()[:16]
        self.name = f"{plugin.service_name} (number {position} of alert_urls)"

    async def send(self, title: str, body: str) -> None:
        """See `Service`."""
        # In a thread, because Apprise blocks. Its time-outs are the URL's own (`?cto=`, `?rto=`), 4 s by default.
        if not await asyncio.to_thread(self._plugin.notify, title=title, body=body, body_format="text"):
            raise ServiceUnavailable(f"{self.name} did not accept a notice; it is kept and sent again")
