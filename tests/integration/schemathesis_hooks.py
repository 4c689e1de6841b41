"""What schemathesis cannot know from the document: whose token it sends, and that a cursor comes from a page."""

import os
import re
from typing import Any

import schemathesis

from pisync_common.rules import ID_PATTERN

DEVICE_VARIABLE = "PISYNC_TEST_DEVICE"
_ID = re.compile(ID_PATTERN[1:-1])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """A device sends for itself; a well-formed cursor that no page gave is left out."""
    body, query = case.body, case.query
    if isinstance(body, dict) and isinstance(device := body.get("device_id"), str) and _ID.fullmatch(device):
        body["device_id"] = os.environ[DEVICE_VARIABLE]
    if query and isinstance(cursor := query.get("cursor"), str) and 1 <= len(cursor) <= 256 and "\0" not in cursor:
        del query["cursor"]
