"""Pages: an array, and a Link header that leads to the next one."""

from collections.abc import Callable
from typing import Final, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from pisync_receiver import params
from pisync_receiver.answers import Answer, json_answer
from pisync_receiver.routing import Request
from pisync_receiver.store import Page

LIMIT: Final = params.whole("limit", "Rows of one page", default=100, low=1, high=1000)
CURSOR: Final = params.text("cursor", "Where the page begins, as the Link header of the page before says")

Row = TypeVar("Row")


def page_answer(request: Request, page: Page[Row], view: Callable[[Row], object]) -> Answer:
    """The page's rows as JSON, with a Link header unless it is the last."""
    headers = () if page.next is None else ((b"link", next_link(request, page.next).encode()),)
    return json_answer([view(row) for row in page.rows], headers=headers)


def next_link(request: Request, cursor: str) -> str:
    """`<same page, other cursor>; rel="next"`, relative to the host, which a gateway may have renamed."""
    given = parse_qsl(request.scope["query_string"].decode(), keep_blank_values=True)
    query = urlencode([pair for pair in given if pair[0] != "cursor"] + [("cursor", cursor)])
    return f'<{quote(request.scope["path"])}?{query}>; rel="next"'
