"""An identity provider that speaks OpenID Connect: authorization code with PKCE, state and nonce.

What must survive between leaving and coming back (state, nonce, PKCE verifier) is in a signed cookie. Its key is made
of the client secret, which all receivers of an installation share, so any of them can finish what another began.
"""

import base64
import hmac
import json
import logging
import re
import secrets
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import httpx
from authlib.common.urls import add_params_to_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from pisync_common.errors import RuleError
from pisync_common.rules import check_site
from pisync_receiver.domain.submissions import Scope
from pisync_receiver.errors import SignInRefused
from pisync_receiver.http.oidc import OidcSettings, Person
from pisync_receiver.logs import fields

log = logging.getLogger(__name__)

ANSWER_S: Final = 10.0
"""How long the provider may take for an answer."""
AWAY_S: Final = 600
"""How long a person may take at the provider."""
KEPT_S: Final = 600
"""How long what the provider says of itself is kept; keys that are not known are asked for at once."""
LEEWAY_S: Final = 120
"""How far the clocks of the provider and of this receiver may differ."""
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with the provider's private key; never a shared secret, never none."""
_ERROR: Final = re.compile(r"[a-z_]{1,40}")
_AWAY: Final = "the identity provider does not answer as it should; try again later, or sign in with a token"
_EXPIRED: Final = "this sign-in took too long or began elsewhere; begin again"


class OpenIdConnect:
    """One provider. Used on the event loop."""

    def __init__(self, settings: OidcSettings, *, now_ms: Callable[[], int], clock: Callable[[], float]) -> None:
        """`clock` counts seconds and never goes back."""
        self._settings = settings
        self._now_ms = now_ms
        self._clock = clock
        self._key = hmac.digest(settings.client_secret.encode(), b"pisync sign-in", "sha256")
        self._trusted = ssl.create_default_context()  # reading the system's certificates takes 30 ms
        self._metadata: dict[str, Any] = {}
        self._keys: KeySet | None = None
        self._asked = -float(KEPT_S)

    @property
    def is_known(self) -> bool:
        return bool(self._metadata) and self._clock() < self._asked + KEPT_S

    async def begin(self, following: str) -> tuple[str, str]:
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        until = self._now_ms() // 1000 + AWAY_S
        async with self._client() as client:
            endpoint = (await self._discovered(client))["authorization_endpoint"]
        asked = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._settings.redirect_uri,
            "scope": self._settings.scope,
            "state": state,
            "nonce": nonce,
            "code_challenge": create_s256_code_challenge(verifier),
            "code_challenge_method": "S256",
        }
        return add_params_to_uri(endpoint, asked.items()), self._sealed([state, nonce, verifier, following, until])

    async def finish(self, cookie: str, answer: Mapping[str, str | None]) -> Person:
        state, nonce, verifier, following, until = self._unsealed(cookie)
        if not hmac.compare_digest(state.encode(), (answer["state"] or "").encode()):
            raise SignInRefused(_EXPIRED)
        if until < self._now_ms() // 1000:
            raise SignInRefused(_EXPIRED)
        if answer["iss"] not in (None, self._settings.issuer):
            raise SignInRefused("the answer came from another identity provider; begin again")
        if (code := answer["code"]) is None:
            error = answer["error"] or ""
            raise SignInRefused(f"the identity provider refused ({error if _ERROR.fullmatch(error) else 'no reason'})")
        async with self._client() as client:
            claims = await self._claims(client, code, nonce, verifier)
        return Person(name=_name(claims), scope=self._scope(claims), following=following)

    # The provider.

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=ANSWER_S, verify=self._trusted)

    async def _discovered(self, client: httpx.AsyncClient) -> dict[str, Any]:
        """What the provider says of itself. Raises SignInRefused."""
        if not self.is_known:
            found = await _json(client.get(self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"))
            if found.get("issuer") != self._settings.issuer:
                raise _away(f"its discovery document names the issuer {str(found.get('issuer'))[:200]!r}")
            if not all(isinstance(found.get(name), str) for name in _ENDPOINTS):
                raise _away(f"its discovery document lacks one of: {', '.join(_ENDPOINTS)}")
            self._metadata, self._keys, self._asked = found, None, self._clock()
        return self._metadata

    async def _claims(self, client: httpx.AsyncClient, code: str, nonce: str, verifier: str) -> dict[str, Any]:
        """Exchange a code for what the provider vouches for. Raises SignInRefused."""
        metadata = await self._discovered(client)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._settings.redirect_uri,
            "code_verifier": verifier,
        }
        settings, auth = self._settings, None
        if "client_secret_basic" in metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"]):
            auth = httpx.BasicAuth(settings.client_id, settings.client_secret)
        else:
            form |= {"client_id": settings.client_id, "client_secret": settings.client_secret}
        tokens = await _json(client.post(metadata["token_endpoint"], data=form, auth=auth or httpx.USE_CLIENT_DEFAULT))
        claims = await self._verified(client, tokens, nonce)
        if settings.claim not in claims and "userinfo_endpoint" in metadata and "access_token" in tokens:
            headers = {"authorization": f"Bearer {tokens['access_token']}"}
            more = await _json(client.get(metadata["userinfo_endpoint"], headers=headers))
            if more.get("sub") == claims["sub"]:
                claims = more | claims
        return claims

    async def _verified(self, client: httpx.AsyncClient, tokens: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        """The claims of an ID token that is for us, of now, and signed by the provider. Raises SignInRefused."""
        issuer, client_id = self._settings.issuer, self._settings.client_id
        try:
            token = await self._decoded(client, str(tokens.get("id_token", "")))
            claims = CodeIDToken(
                token.claims,
                token.header,
                {"iss": {"essential": True, "value": issuer}, "aud": {"essential": True, "value": client_id}},
                {"nonce": nonce, "client_id": client_id, "access_token": tokens.get("access_token")},
            )
            claims.validate(now=self._now_ms() // 1000, leeway=LEEWAY_S)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            log.warning("an ID token was refused", extra=fields(issuer=issuer, reason=_reason(error)))
            raise SignInRefused(
                f"the identity provider's answer is not valid ({_reason(error)}); begin again"
            ) from error
        return dict(claims)

    async def _decoded(self, client: httpx.AsyncClient, text: str) -> jwt.Token:
        try:
            return jwt.decode(text, await self._key_set(client), algorithms=[*ALGORITHMS])
        except (InvalidKeyIdError, ValueError):  # the provider may have a new key
            return jwt.decode(text, await self._key_set(client, fresh=True), algorithms=[*ALGORITHMS])

    async def _key_set(self, client: httpx.AsyncClient, *, fresh: bool = False) -> KeySet:
        if self._keys is None or fresh:
            self._keys = KeySet.import_key_set(cast(Any, await _json(client.get(self._metadata["jwks_uri"]))))
        return self._keys

    def _scope(self, claims: Mapping[str, Any]) -> Scope:
        """What a person may do. An address that the provider has not verified says nothing."""
        settings = self._settings
        given = claims.get(settings.claim)
        if settings.claim == "email" and claims.get("email_verified") is False:
            given = None
        values = {given} if isinstance(given, str) else set(given) if isinstance(given, list) else set()
        if values & set(settings.admin):
            return "admin"
        if values & set(settings.viewer):
            return "viewer"
        raise SignInRefused("this account may not sign in here; ask an admin to give it one of the agreed roles")

    # The cookie.

    def _sealed(self, values: list[Any]) -> str:
        body = base64.urlsafe_b64encode(json.dumps(values).encode())
        return f"{body.decode()}.{hmac.digest(self._key, body, 'sha256').hex()}"

    def _unsealed(self, cookie: str) -> tuple[str, str, str, str, int]:
        body, _, signature = cookie.partition(".")
        if not hmac.compare_digest(hmac.digest(self._key, body.encode(), "sha256").hex().encode(), signature.encode()):
            raise SignInRefused(_EXPIRED)
        state, nonce, verifier, following, until = json.loads(base64.urlsafe_b64decode(body))
        return state, nonce, verifier, following, until


_ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint", "jwks_uri")


async def _json(asked: Any) -> dict[str, Any]:
    """Return the object that the provider answers. Raises SignInRefused."""
    try:
        answer: httpx.Response = (await asked).raise_for_status()
        found = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _away(_reason(error)) from error
    except ValueError as error:
        raise _away("an answer is not JSON") from error
    if not isinstance(found, dict):
        raise _away("an answer is not a JSON object")
    return found


def _away(reason: str) -> SignInRefused:
    log.warning("the identity provider cannot be used", extra=fields(reason=reason))
    return SignInRefused(_AWAY)


def _reason(error: Exception) -> str:
    """What went wrong; the text of other errors may hold what was sent."""
    match error:
        case JoseError():
            return str(error)[:200]
        case httpx.HTTPStatusError():
            return f"it answered {error.response.status_code}"
        case _:
            return type(error).__name__


def _name(claims: Mapping[str, Any]) -> str:
    """What the audit log calls the person."""
    email = claims.get("email") if claims.get("email_verified") is not False else None
    for name in (email, claims.get("sub")):
        try:
            if isinstance(name, str):
                return check_site(name)
        except RuleError:
            continue
    raise SignInRefused("the identity provider names no e-mail address and no subject that can be shown")
