"""People in a browser without scripts: they sign in, read pages, fill in forms and send them.

person = sign_in(live, "admin")
person.get("/devices").text
person.send("/devices/pibook-1/retire")
"""

import re
from html import unescape
from typing import Any, Final

import httpx

from pisync_receiver.http.sessions import COOKIE
from tests.support.live_receiver import Live

_CSRF: Final = re.compile(r'name="csrf" value="([0-9a-f]+)"')
_INLINE: Final = re.compile(r"</?(?:a|bdi|code|span|strong|time)\b[^>]*>")
HTML: Final = "text/html,application/xhtml+xml,*/*;q=0.8"


class Person:
    """Someone who has signed in."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    @property
    def cookie(self) -> str:
        """The session's secret."""
        return self.client.cookies[COOKIE]

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Open a page."""
        return self.client.get(path, headers=headers)

    def text(self, path: str) -> str:
        """Return the words of a page, which must be there: without elements, and as a reader sees them."""
        answer = self.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {words(answer.text)[:500]}"
        return words(answer.text)

    def send(self, path: str, *, form_of: str | None = None, **fields: Any) -> httpx.Response:
        """Send the form of a page; its address is that of the form unless `form_of` says another."""
        page = self.get(form_of or path)
        csrf = _CSRF.search(page.text)
        assert csrf is not None, f"{form_of or path} has no form: {page.status_code} {words(page.text)[:500]}"
        return self.client.post(path, data={"csrf": csrf[1], **fields})


def sign_in(live: Live, kind: str = "admin") -> Person:
    """Sign in with the token of `kind`."""
    client = live.client(None, Accept=HTML)
    answer = client.post("/sign-in", data={"token": live.secrets[kind]})
    assert answer.status_code == 303, answer.text
    return Person(client)


def words(page: str) -> str:
    """Return what a page says: its main part without elements, its spaces each one."""
    main = page.partition("<main")[2] or page
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", _INLINE.sub("", main))).split())
