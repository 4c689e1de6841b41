"""Notification services, by Apprise: one URL for each."""

import asyncio
import hashlib
from typing import TYPE_CHECKING, Protocol

from pisync_common.errors import SettingError
from pisync_receiver.errors import MissingExtra
from pisync_receiver.worker.errors import ServiceUnavailable

if TYPE_CHECKING:
    from apprise.plugins.base import NotifyBase


class Service(Protocol):
    """Takes notices. `target` names it without its secrets."""

    @property
    def target(self) -> str: ...
    async def send(self, title: str, body: str) -> None:
        """Raises ServiceUnavailable where the service did not take it."""
        ...


class AppriseService:
    """What stands behind one Apprise URL."""

    def __init__(self, url: str, position: int) -> None:
        """`position` counts the URLs of the setting from 1, to tell of one without showing it.

        Raises MissingExtra where Apprise is not installed, SettingError for a URL it does not know.
        """
        try:
            import apprise
        except ImportError as error:
            raise MissingExtra("alerts", error) from error
        asset = apprise.AppriseAsset(app_id="PiSync", app_desc="PiSync", app_url="", secure_logging=True)
        plugin = apprise.Apprise.instantiate(url, asset=asset)
        if plugin is None:
            raise SettingError(
                f"alert_urls: number {position} is no URL that Apprise knows; nothing was sent. It shows what fits: "
                "apprise --details"
            )
        if "overflow=" not in url:
            # One message stays one; what comes last matters least.
            plugin.overflow_mode = apprise.OverflowMode.TRUNCATE
        self._plugin: NotifyBase = plugin
        self.target = hashlib.sha256(url.encode()).hexdigest()[:16]
        self.name = f"{plugin.service_name} (number {position} of alert_urls)"

    async def send(self, title: str, body: str) -> None:
        """See `Service`."""
        # A thread, because Apprise blocks. Its time-outs are the URL's own (`?cto=`, `?rto=`), 4 s by default.
        if not await asyncio.to_thread(self._plugin.notify, title=title, body=body, body_format="text"):
            raise ServiceUnavailable(f"{self.name} did not take a notice; it is kept and goes again")
