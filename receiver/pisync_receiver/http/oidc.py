"""Signing in with an organisation's own accounts: its settings, and what an identity provider is to the rest.

The provider that speaks OpenID Connect is in `openid`, which needs an extra.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from pisync_common.errors import SettingError
from pisync_common.settings import Setting, Settings, optional, path, text
from pisync_receiver.domain.submissions import Scope
from pisync_receiver.http.forwarded import is_loopback_host

CALLBACK: Final = "/sign-in/oidc/callback"
"""The path to which the provider sends a browser back."""


def _issuer(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback_host(parts.netloc)):
        raise ValueError("not the https:// address of an identity provider, as its own discovery document names it")
    return value


def _values(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


ISSUER = Setting[str | None](
    name="oidc_issuer",
    default="",
    parse=optional(_issuer),
    metavar="URL",
    help="the identity provider (OpenID Connect) whose accounts sign in to the pages; empty for none",
)
CLIENT_ID = Setting(
    name="oidc_client_id", default="", parse=text, metavar="ID", help="this receiver's id at the identity provider"
)
CLIENT_SECRET_FILE = Setting(
    name="oidc_client_secret_file",
    default="",
    parse=optional(path),
    metavar="FILE",
    help="a file with this receiver's secret at the identity provider",
)
SCOPE = Setting(
    name="oidc_scope",
    default="openid email profile",
    parse=text,
    metavar="SCOPES",
    help="what is asked of the identity provider; some name groups only if `groups` is asked for",
)
CLAIM = Setting(
    name="oidc_claim",
    default="groups",
    parse=text,
    metavar="NAME",
    help="the claim that says what a person may do: groups, roles, email, or another",
)
ADMIN = Setting(
    name="oidc_admin",
    default="",
    parse=_values,
    metavar="VALUES",
    help="values of that claim, between commas, that make a person an admin of all sites",
)
VIEWER = Setting(
    name="oidc_viewer",
    default="",
    parse=_values,
    metavar="VALUES",
    help="values of that claim, between commas, that make a person a viewer of all sites",
)
SETTINGS: Final[tuple[Setting[Any], ...]] = (ISSUER, CLIENT_ID, CLIENT_SECRET_FILE, SCOPE, CLAIM, ADMIN, VIEWER)


@dataclass(frozen=True, kw_only=True)
class OidcSettings:
    """What is agreed with an identity provider."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    scope: str
    claim: str
    admin: tuple[str, ...]
    viewer: tuple[str, ...]


def oidc_settings(settings: Settings, public_url: str | None) -> OidcSettings | None:
    """Return what is agreed with the identity provider, if there is one. Raises SettingError for what is missing."""
    issuer = settings[ISSUER]
    if issuer is None:
        return None
    file = settings[CLIENT_SECRET_FILE]
    for name, given in (
        ("public_url", public_url),
        (CLIENT_ID.name, settings[CLIENT_ID]),
        (CLIENT_SECRET_FILE.name, file),
        (f"{ADMIN.name} or {VIEWER.name}", settings[ADMIN] or settings[VIEWER]),
    ):
        if not given:
            raise SettingError(f"oidc_issuer ({settings.source(ISSUER)}) needs {name} too; nothing was started")
    assert file is not None
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise SettingError(f"oidc_client_secret_file: {file} cannot be read: {reason}") from error
    if not secret:
        raise SettingError(f"oidc_client_secret_file: {file} is empty")
    return OidcSettings(
        issuer=issuer,
        client_id=settings[CLIENT_ID],
        client_secret=secret,
        redirect_uri=f"{public_url}{CALLBACK}",
        scope=settings[SCOPE],
        claim=settings[CLAIM],
        admin=settings[ADMIN],
        viewer=settings[VIEWER],
    )


@dataclass(frozen=True, kw_only=True)
class Person:
    """Whom the identity provider vouches for, and what the person may do."""

    name: str
    scope: Scope
    following: str
    """The page that was asked for before."""


class IdentityProvider(Protocol):
    """Signs people in elsewhere. Errors are SignInRefused, in words for the person."""

    @property
    def is_known(self) -> bool:
        """Whether `begin` needs no question to the provider."""

    async def begin(self, following: str) -> tuple[str, str]:
        """Return the provider's address to go to, and a cookie's value that `finish` needs."""

    async def finish(self, cookie: str, answer: Mapping[str, str | None]) -> Person:
        """Return who came back, given what `begin` gave and the query that the provider sent."""
