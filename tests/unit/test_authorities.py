"""Which authorities are trusted on a system that has them, has an empty store, or has none."""

import ssl
from pathlib import Path

import httpx
import pytest

from pisync_agent.errors import Unreachable
from pisync_agent.network.authorities import private_trust, public_trust


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder of authorities, empty, beside a file of them that does not exist."""
    found = ssl.get_default_verify_paths()._replace(cafile="", capath=str(tmp_path))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: found)
    return tmp_path


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What httpx would trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    monkeypatch.setattr(httpx, "create_ssl_context", lambda trust_env: context)
    return context


def test_the_systems_authorities_are_trusted(store: Path, own: ssl.SSLContext) -> None:
    (store / "0123abcd.0").touch()

    assert public_trust() is not own


@pytest.mark.parametrize("file", ["", "README"])
def test_without_a_system_store_those_of_httpx_are_trusted(store: Path, own: ssl.SSLContext, file: str) -> None:
    if file:
        (store / file).touch()

    assert public_trust() is own


def test_an_empty_file_of_authorities_is_no_store(
    store: Path, own: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = store / "ca-certificates.crt"
    empty.touch()
    found = ssl.get_default_verify_paths()._replace(cafile=str(empty))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: found)

    assert public_trust() is own


@pytest.mark.usefixtures("store")
def test_without_any_authority_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(trust_env: bool) -> ssl.SSLContext:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(httpx, "create_ssl_context", missing)

    with pytest.raises(Unreachable, match="ca-certificates") as caught:
        public_trust()

    assert caught.value.kind == "tls"
    assert "Everything is kept" in str(caught.value)


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"ca\.pem"):
        private_trust(str(tmp_path / "ca.pem"))
