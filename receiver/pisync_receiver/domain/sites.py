"""Where a device is and was: a device belongs to one site at a time, and its history is kept in its row."""

import json
from contextlib import suppress
from functools import lru_cache
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from pisync_receiver.domain.records import Time, time_of
from pisync_receiver.domain.rows import Device

SITES_KEPT: Final = 50
"""Earlier sites of a device that are remembered; the oldest of them stands for everything before it."""


def site_at(device: Device, ms: int) -> str | None:
    """Return the device's site at a moment."""
    if device.site_since_ms is None or ms >= device.site_since_ms:
        return device.site
    return next((site for until_ms, site in earlier_sites(device.site_history) if ms < until_ms), device.site)


def moved(device: Device, site: str, since_ms: int) -> Device:
    """Return the device at another site from a moment on. Later moves are undone; a first site counts for all of its
    past."""
    if device.site is None and device.site_history is None:
        return replace(device, site=site)
    earlier = [entry for entry in earlier_sites(device.site_history) if entry[0] < since_ms]
    history = [*earlier, (since_ms, site_at(device, since_ms - 1))][-SITES_KEPT:]
    return replace(device, site=site, site_since_ms=since_ms, site_history=json.dumps(history, ensure_ascii=False))


@lru_cache(maxsize=64)
def earlier_sites(text: str | None) -> tuple[tuple[int, str | None], ...]:
    """Return earlier sites and when each ended, oldest first; none for a stored text that is none. Remembered: a
    batch asks for each of its events."""
    with suppress(ValueError, TypeError, RecursionError):
        return tuple((int(until_ms), site) for until_ms, site in json.loads(text or "[]"))
    return ()


class Stay(Struct, frozen=True, kw_only=True):
    """A device at a site. `since` is None for always, `until` for now."""

    site: str | None
    since: Time | None
    until: Time | None


def stays(device: Device) -> list[Stay]:
    """Return where a device is and was, newest first."""
    bounds = [until_ms for until_ms, _ in earlier_sites(device.site_history)]
    sites = [*(site for _, site in earlier_sites(device.site_history)), device.site]
    return [
        Stay(site=site, since=time_of(since_ms), until=time_of(until_ms))
        for site, since_ms, until_ms in zip(sites, [None, *bounds], [*bounds, None], strict=True)
    ][::-1]
