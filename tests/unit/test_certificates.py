"""What is read from a certificate, against what openssl says of it; and nothing from what is no certificate."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_agent.network.certificates import read_certificate
from tests.support.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


def der_of(file: Path) -> bytes:
    text = file.read_text()
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(text[: text.index(end) + len(end)] + "\n")


@pytest.mark.parametrize(("first", "last"), [(1950, 2049), (1999, 2000), (2020, 2050), (2060, 2090)])
def test_issuer_and_dates_are_read(authority: Authority, first: int, last: int) -> None:
    """Years before 2050 have two digits in a certificate, later years four."""
    der = der_of(authority.pem(start=f"{first}0203040506Z", end=f"{last}1231235959Z"))
    found = read_certificate(der)

    assert found is not None
    assert found.issuer == "A school"
    assert found.not_before == datetime(first, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert found.not_after == datetime(last, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_a_certificate_that_is_cut_or_changed_never_raises(authority: Authority) -> None:
    der = der_of(authority.certificate)
    assert read_certificate(der) is not None
    for at in range(len(der)):
        read_certificate(der[:at])
        for value in (0x00, 0x7F, 0x80, 0xFF):
            found = read_certificate(der[:at] + bytes((value,)) + der[at + 1 :])
            assert found is None or found.issuer.isprintable()


@given(st.binary(max_size=100))
def test_no_certificate_is_found_in_noise(data: bytes) -> None:
    assert read_certificate(data) is None
