"""Which address is believed."""

import pytest

from pisync_receiver.http.forwarded import client_address, networks

GATEWAYS = networks("10.0.0.5, 192.168.4.0/24, ::1")


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("203.0.113.7", None, "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),  # not from a trusted gateway
        ("10.0.0.5", None, "10.0.0.5"),
        ("10.0.0.5", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.5", "1.2.3.4, 198.51.100.1", "198.51.100.1"),  # the caller wrote 1.2.3.4 itself
        ("10.0.0.5", "198.51.100.1, 192.168.4.9", "198.51.100.1"),  # two gateways, one behind the other
        ("::1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.5", "unknown", "10.0.0.5"),
        ("10.0.0.5", "198.51.100.1, <script>", "10.0.0.5"),
        ("10.0.0.5", "", "10.0.0.5"),
        ("10.0.0.5", "9" * 5_000, "10.0.0.5"),
    ],
)
def test_the_last_address_that_is_not_a_gateways_is_the_callers(peer: str, header: str | None, client: str) -> None:
    headers = {} if header is None else {b"x-forwarded-for": header.encode()}
    assert client_address(peer, headers, GATEWAYS) == client


def test_without_trusted_gateways_the_header_is_ignored() -> None:
    headers = {b"x-forwarded-for": b"198.51.100.1"}
    assert client_address("127.0.0.1", headers, ()) == "127.0.0.1"


@pytest.mark.parametrize("value", ["gateway", "10.0.0.5/33", "10.0.0.1/8"])
def test_a_bad_setting_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="not addresses or networks"):
        networks(value)
