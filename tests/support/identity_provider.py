"""A small OpenID Connect provider as a process (`openid_provider.py`): real keys, JWKS over HTTP, one person.

with IdentityProviderProcess(redirect_uri) as provider:
    provider.person(sub="u1", email="a@example.org", groups=["heads"])
    provider.fault("nonce")

The person is signed in at once. A fault stays until the next: `nonce`, `audience`, `issuer`, `expired`, `signature`,
`unsigned` (algorithm none), `shared` (signed with the client's secret), `rotated` (a new key), `denied` or empty.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

CLIENT_ID: Final = "pisync"
CLIENT_SECRET: Final = "a secret of the client's"
PROGRAM: Final = Path(__file__).with_name("openid_provider.py")
_READY: Final = b"ready "


class IdentityProviderProcess:
    """The provider in a process of its own."""

    def __init__(self, redirect_uri: str) -> None:
        self._redirect_uri = redirect_uri
        self.issuer = ""
        self.browser = httpx.Client(trust_env=False)
        """Goes where a sign-in leads."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-W", "ignore", str(PROGRAM), self._redirect_uri, CLIENT_ID, CLIENT_SECRET]
        environ = os.environ | {"AUTHLIB_INSECURE_TRANSPORT": "1"}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environ)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith(_READY), line
        self.issuer = line.removeprefix(_READY).decode().strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.browser.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def person(self, **claims: Any) -> None:
        """Say who signs in next, and what is known of them."""
        self._tell("person", claims)

    def fault(self, name: str = "") -> None:
        self._tell("fault", name)

    def _tell(self, what: str, value: Any) -> None:
        self.browser.post(f"{self.issuer}/tell", json={what: value}).raise_for_status()
