"""The caller's address, and whether it came by HTTPS: the connection's own, or what a trusted gateway says.

A caller can write any X-Forwarded-For it likes. Each gateway adds at the end the address that it saw itself, so the
addresses are read from the end, as long as trusted gateways have written them. (uvicorn's own reader of
this header takes any text for an address, and this address goes into the log.)
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Networks = tuple[Network, ...]

_HEADER: Final = b"x-forwarded-for"
_PROTO: Final = b"x-forwarded-proto"
_LONGEST: Final = 1_000


def networks(value: str) -> Networks:
    """`10.0.0.0/8, ::1`: addresses and networks between commas. Raises ValueError for a setting's message."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise ValueError("not addresses or networks between commas, such as 10.0.0.5, 192.168.4.0/24") from error


def client_address(address: str, headers: Mapping[bytes, bytes], trusted: Networks) -> str:
    """Return the caller's address, given the connection's."""
    named = headers.get(_HEADER)
    if named is None or not _is_one_of(address, trusted):
        return address
    for part in reversed(named[-_LONGEST:].decode("latin-1").split(",")):
        candidate = part.strip()
        if not _is_address(candidate):
            break
        address = candidate
        if not _is_one_of(address, trusted):
            break
    return address


def says_https(address: str, headers: Mapping[bytes, bytes], trusted: Networks) -> bool:
    """Whether the connection is a trusted gateway's that was reached by HTTPS."""
    named = headers.get(_PROTO, b"")
    return named.rpartition(b",")[2].strip().lower() == b"https" and _is_one_of(address, trusted)


def is_loopback_host(host: str) -> bool:
    """Whether a Host header names this machine's loopback: what a browser calls trustworthy without TLS."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    name = name.lower().strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_one_of(address: str, trusted: Networks) -> bool:
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(known in network for network in trusted)
