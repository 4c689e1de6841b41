"""The program of `identity_provider`: an OpenID Connect provider on Authlib's server side. Its arguments are the
address that people are sent back to, and the id and secret of the client; it prints `ready ISSUER`."""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl, urlsplit

from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request, grants
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import OpenIDCode
from joserfc.jwk import OctKey, RSAKey


@dataclass(kw_only=True)
class State:
    """What the provider was told and gave out."""

    issuer: str = ""
    person: dict[str, Any] = field(default_factory=lambda: {"sub": "u1"})
    fault: str = ""
    codes: dict[str, "Code"] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"}))
    other: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"}))


REDIRECT_URI, CLIENT_ID, CLIENT_SECRET = sys.argv[1:]
STATE: Final = State()


class Client(ClientMixin):  # type: ignore[misc]
    """This installation of PiSync."""

    def __init__(self) -> None:
        self.id_token_signed_response_alg = {"unsigned": "none", "shared": "HS256"}.get(STATE.fault, "RS256")

    def get_client_id(self) -> str:
        return CLIENT_ID

    def get_default_redirect_uri(self) -> str:
        return REDIRECT_URI

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_redirect_uri(self, uri: str) -> bool:
        return uri == REDIRECT_URI

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
        return "another" if STATE.fault == "nonce" else self.get("nonce")

    def get_auth_time(self) -> None:
        return None

    get_acr = get_amr = get_auth_time


class CodeGrant(grants.AuthorizationCodeGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)

    def save_authorization_code(self, code: str, request: Any) -> None:
        assert request.payload.data["code_challenge_method"] == "S256"
        STATE.codes[code] = Code(request.payload.data)

    def query_authorization_code(self, code: str, client: Any) -> Any:
        return STATE.codes.get(code)

    def delete_authorization_code(self, authorization_code: Any) -> None:
        STATE.codes.clear()

    def authenticate_user(self, authorization_code: Any) -> Any:
        return STATE.person


class IdToken(OpenIDCode):  # type: ignore[misc]
    def exists_nonce(self, nonce: str, request: Any) -> bool:
        return False

    def resolve_client_private_key(self, client: Any) -> Any:
        if STATE.fault == "shared":
            return OctKey.import_key(CLIENT_SECRET)
        return STATE.other if STATE.fault in ("signature", "rotated") else STATE.key

    def get_encode_header(self, client: Any) -> dict[str, str]:
        return {"alg": self.get_client_algorithm(client), "kid": "k2" if STATE.fault == "rotated" else "k1"}

    def get_client_claims(self, client: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": STATE.issuer, "aud": [CLIENT_ID], "iat": now, "exp": now + 300}
        wrong: dict[str, dict[str, Any]] = {
            "audience": {"aud": ["another"], "azp": CLIENT_ID},
            "issuer": {"iss": "https://another.example"},
            "expired": {"iat": now - 3600, "exp": now - 1800},
        }
        return claims | wrong.get(STATE.fault, {})

    def generate_user_info(self, user: Any, scope: str) -> Any:
        return {name: value for name, value in user.items() if name not in user.get("only_userinfo", [])}


class Server(AuthorizationServer):  # type: ignore[misc]
    def query_client(self, client_id: str) -> Any:
        return Client() if client_id == CLIENT_ID else None

    def save_token(self, token: Any, request: Any) -> None:
        STATE.tokens.add(token["access_token"])

    def create_oauth2_request(self, request: Any) -> Any:
        made = OAuth2Request(request["method"], request["url"], headers=request["headers"])
        made.payload = BasicOAuth2Payload(request["data"])
        made._body = request["data"]
        return made

    def handle_response(self, status: int, body: Any, headers: Any) -> Any:
        return status, body, headers

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    authorization: ClassVar[Server]

    @cached_property
    def metadata(self) -> dict[str, Any]:
        issuer = STATE.issuer
        return {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/authorize",
            "token_endpoint": f"{issuer}/token",
            "userinfo_endpoint": f"{issuer}/userinfo",
            "jwks_uri": f"{issuer}/jwks",
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
        }

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        match parts.path:
            case "/.well-known/openid-configuration":
                self.answer(200, self.metadata)
            case "/jwks":
                rotated = STATE.fault == "rotated"
                public = (STATE.other if rotated else STATE.key).as_dict(private=False)
                self.answer(200, {"keys": [{**public, "kid": "k2" if rotated else "k1"}]})
            case "/authorize":
                user = None if STATE.fault == "denied" else STATE.person
                request = self.request_of(dict(parse_qsl(parts.query)))
                grant = self.authorization.get_consent_grant(request, user)
                self.answer(*self.authorization.create_authorization_response(request, grant_user=user, grant=grant))
            case "/userinfo":
                known = self.headers["Authorization"].removeprefix("Bearer ") in STATE.tokens
                self.answer(200 if known else 401, STATE.person)
            case _:
                self.answer(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/tell":
            for what, value in json.loads(body).items():
                setattr(STATE, what, value)
            self.answer(200, {})
        else:
            self.answer(*self.authorization.create_token_response(self.request_of(dict(parse_qsl(body)))))

    def request_of(self, data: dict[str, str]) -> dict[str, Any]:
        return {"method": self.command, "url": STATE.issuer + self.path, "headers": self.headers, "data": data}

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


def main() -> None:
    Handler.authorization = Server()
    Handler.authorization.register_token_generator("default", BearerTokenGenerator(lambda **_: os.urandom(16).hex()))
    Handler.authorization.register_grant(CodeGrant, [IdToken(require_nonce=True), CodeChallenge(required=True)])
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        STATE.issuer = f"http://127.0.0.1:{listening.server_port}"
        print("ready", STATE.issuer, flush=True)
        listening.serve_forever()


if __name__ == "__main__":
    main()
