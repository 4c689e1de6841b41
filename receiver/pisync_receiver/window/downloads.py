"""Lists as files: the API's exports, for people who have signed in."""

from collections.abc import Mapping
from typing import Final

from pisync_receiver.errors import Problem
from pisync_receiver.http.auth import Access
from pisync_receiver.http.params import Query
from pisync_receiver.http.responses import Reply
from pisync_receiver.window.calls import path_of
from pisync_receiver.window.view import View, field, page

LISTS: Final[Mapping[str, str]] = {
    "activity": "/api/activity",
    "audit": "/api/audit",
    "causes": "/api/causes",
    "devices": "/api/devices",
    "events": "/api/events",
    "failures": "/api/sync-event/devices/repeated-failures",
    "history": "/api/sync-event/device/{}/sync-history",
    "incomplete": "/api/incomplete",
    "runs": "/api/runs",
    "sites": "/api/sites",
    "speeds": "/api/speeds",
    "suspicious": "/api/suspicious",
    "transitions": "/api/transitions",
}
"""What can be downloaded, by the name in the page's path; `device_id` takes the place of {}."""
FIELDS: Final = (
    "format", "raw", "bom", "search", "site", "without_site", "state", "incomplete", "cloned", "sort", "since", "until",
    "occurred_since", "occurred_until", "device_id", "stream", "type", "object_id", "by", "group", "mode",
    "min_failures", "act", "actor", "target", "limit",
)  # fmt: skip


@page(
    "GET",
    "/download/{list}",
    Access.READER,
    query=Query(params=[field(name, "As the API takes it") for name in FIELDS]),
)
async def download(view: View) -> Reply:
    """A list as CSV, NDJSON or Parquet, with the filters of its page."""
    path = LISTS.get(view.path["list"])
    if path is None:
        raise Problem(404, "not_found", "there is no such list")
    given = {name: view.query[name] for name in FIELDS}
    if "{}" in path:
        path = path_of(path, given.pop("device_id") or "")
    return await view.download(path, **given | {"format": given["format"] or "csv"})


PAGES: Final = (download,)
