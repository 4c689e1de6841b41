"""Ask for a sign-in page where a receiver would not answer so: over plain HTTP, after TLS failed."""

import contextlib
from typing import Final

import httpx

import pisync_agent.answers as answers
from pisync_agent.network.authorities import no_trust
from pisync_agent.network.connections import Connections, Deadline

PROBE_S: Final = 5.0
PLAIN_PORT: Final = 80


def sign_in_page(url: httpx.URL, *, agent: str, deadline: Deadline) -> answers.SignIn | None:
    """Return what `http://HOST/healthz` was answered, if a sign-in page or a filter answers so and no receiver.

    Only the receiver's own host is asked, without a token, and without following a redirect.
    """
    deadline.begin(PROBE_S)
    plain = url.copy_with(scheme="http", port=PLAIN_PORT, raw_path=b"/healthz")
    with contextlib.closing(Connections(trust=no_trust(), proxy=None, deadline=deadline)) as connections:
        try:
            timeouts = httpx.Timeout(PROBE_S).as_dict()
            request = httpx.Request("GET", plain, headers={"User-Agent": agent}, extensions={"timeout": timeouts})
            response = connections.handle_request(request)
        except (httpx.TransportError, OSError, UnicodeError):
            return None
        headers = {name.lower(): value for name, value in response.headers.items()}
        response.close()
    return answers.sign_in(response.status_code, headers, url.host)
