"""A small OpenID Connect provider as a process, on Authlib's server side: real keys, JWKS over HTTP, one person.

with IdentityProviderProcess(redirect_uri) as provider:
    provider.person(sub="u1", email="a@example.org", groups=["heads"])
    provider.fault("nonce")

The person is signed in at once. A fault stays until the next: `nonce`, `audience`, `issuer`, `expired`, `signature`,
`unsigned` (algorithm none), `shared` (signed with the client's secret), `rotated` (a new key), `denied` or empty.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

import httpx

CLIENT_ID: Final = "pisync"
CLIENT_SECRET: Final = "a secret of the client's"
_READY: Final = b"ready "


class IdentityProviderProcess:
    """The provider in a process of its own."""

    def __init__(self, redirect_uri: str) -> None:
        self._redirect_uri = redirect_uri
        self.issuer = ""
        self.browser = httpx.Client(trust_env=False)
        """Goes where a sign-in leads."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-W", "ignore", __file__, self._redirect_uri]
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


def main(redirect_uri: str) -> None:
    import time

    from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request, grants
    from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
    from authlib.oauth2.rfc6750 import BearerTokenGenerator
    from authlib.oauth2.rfc7636 import CodeChallenge
    from authlib.oidc.core import OpenIDCode
    from joserfc.jwk import OctKey, RSAKey

    key, other = (RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"}) for _ in range(2))
    told: dict[str, Any] = {"person": {"sub": "u1"}, "fault": ""}
    codes: dict[str, dict[str, Any]] = {}

    class Client(ClientMixin):  # type: ignore[misc]
        """This installation of PiSync."""

        def __init__(self) -> None:
            self.id_token_signed_response_alg = {"unsigned": "none", "shared": "HS256"}.get(told["fault"], "RS256")

        def get_client_id(self) -> str:
            return CLIENT_ID

        def get_default_redirect_uri(self) -> str:
            return redirect_uri

        def get_allowed_scope(self, scope: str) -> str:
            return scope

        def check_redirect_uri(self, uri: str) -> bool:
            return uri == redirect_uri

        def check_client_secret(self, secret: str) -> bool:
            return secret == CLIENT_SECRET

        def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
            return method == "client_secret_basic"

        def check_response_type(self, response_type: str) -> bool:
            return response_type == "code"

        def check_grant_type(self, grant_type: str) -> bool:
            return grant_type == "authorization_code"

    class Code(dict[str, Any]):
        """An authorization code that was given out."""

        code_challenge = property(lambda self: self.get("code_challenge"))
        code_challenge_method = property(lambda self: self.get("code_challenge_method"))

        def get_redirect_uri(self) -> Any:
            return self["redirect_uri"]

        def get_scope(self) -> Any:
            return self["scope"]

        def get_nonce(self) -> Any:
            return "another" if told["fault"] == "nonce" else self.get("nonce")

        def get_auth_time(self) -> None:
            return None

        get_acr = get_amr = get_auth_time

    class CodeGrant(grants.AuthorizationCodeGrant):  # type: ignore[misc]
        TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)

        def save_authorization_code(self, code: str, request: Any) -> None:
            assert request.payload.data["code_challenge_method"] == "S256"
            codes[code] = Code(request.payload.data)

        def query_authorization_code(self, code: str, client: Any) -> Any:
            return codes.get(code)

        def delete_authorization_code(self, authorization_code: Any) -> None:
            codes.clear()

        def authenticate_user(self, authorization_code: Any) -> Any:
            return told["person"]

    class IdToken(OpenIDCode):  # type: ignore[misc]
        def exists_nonce(self, nonce: str, request: Any) -> bool:
            return False

        def resolve_client_private_key(self, client: Any) -> Any:
            if told["fault"] == "shared":
                return OctKey.import_key(CLIENT_SECRET)
            return other if told["fault"] in ("signature", "rotated") else key

        def get_encode_header(self, client: Any) -> dict[str, str]:
            kid = "k2" if told["fault"] == "rotated" else "k1"
            return {"alg": self.get_client_algorithm(client), "kid": kid}

        def get_client_claims(self, client: Any) -> dict[str, Any]:
            fault, now = told["fault"], int(time.time())
            claims = {"iss": issuer, "aud": [CLIENT_ID], "iat": now, "exp": now + 300}
            if fault == "audience":
                claims |= {"aud": ["another"], "azp": CLIENT_ID}
            if fault == "issuer":
                claims |= {"iss": "https://another.example"}
            if fault == "expired":
                claims |= {"iat": now - 3600, "exp": now - 1800}
            return claims

        def generate_user_info(self, user: Any, scope: str) -> Any:
            return {name: value for name, value in user.items() if name not in user.get("only_userinfo", [])}

    class Server(AuthorizationServer):  # type: ignore[misc]
        def query_client(self, client_id: str) -> Any:
            return Client() if client_id == CLIENT_ID else None

        def save_token(self, token: Any, request: Any) -> None:
            tokens.add(token["access_token"])

        def create_oauth2_request(self, request: Any) -> Any:
            made = OAuth2Request(request["method"], request["url"], headers=request["headers"])
            made.payload = BasicOAuth2Payload(request["data"])
            made._body = request["data"]
            return made

        def handle_response(self, status: int, body: Any, headers: Any) -> Any:
            return status, body, headers

        def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
            pass

    tokens: set[str] = set()
    server = Server()
    server.register_token_generator("default", BearerTokenGenerator(lambda **_: os.urandom(16).hex()))
    server.register_grant(CodeGrant, [IdToken(require_nonce=True), CodeChallenge(required=True)])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            match parts.path:
                case "/.well-known/openid-configuration":
                    self.answer(200, metadata)
                case "/jwks":
                    public = key if told["fault"] != "rotated" else other
                    shown = {**public.as_dict(private=False), "kid": "k1" if public is key else "k2"}
                    self.answer(200, {"keys": [shown]})
                case "/authorize":
                    user = None if told["fault"] == "denied" else told["person"]
                    request = self.request_of(dict(parse_qsl(parts.query)))
                    grant = server.get_consent_grant(request, user)
                    self.answer(*server.create_authorization_response(request, grant_user=user, grant=grant))
                case "/userinfo":
                    known = self.headers["Authorization"].removeprefix("Bearer ") in tokens
                    self.answer(200 if known else 401, told["person"])
                case _:
                    self.answer(404, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if self.path == "/tell":
                told.update(json.loads(body))
                self.answer(200, {})
            else:
                self.answer(*server.create_token_response(self.request_of(dict(parse_qsl(body)))))

        def request_of(self, data: dict[str, str]) -> dict[str, Any]:
            return {"method": self.command, "url": issuer + self.path, "headers": self.headers, "data": data}

        def answer(self, status: int, body: Any, headers: Any = ()) -> None:
            text = json.dumps(body).encode() if isinstance(body, dict) else (body or "").encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = f"http://127.0.0.1:{listening.server_port}"
    metadata = {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": f"{issuer}/token",
        "userinfo_endpoint": f"{issuer}/userinfo",
        "jwks_uri": f"{issuer}/jwks",
        "token_endpoint_auth_methods_supported": ["client_secret_basic"],
    }
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    sys.stdout.buffer.write(_READY + issuer.encode() + b"\n")
    sys.stdout.buffer.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
