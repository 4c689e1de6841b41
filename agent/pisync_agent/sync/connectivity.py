"""Whether there is a link, as far as this device can tell without sending a packet, and when links change.

This is only a hint; what counts is whether the receiver answers. Without a link an attempt is pointless, which is not
a failure; a change means that an attempt may be worthwhile now.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

ELSEWHERE: Final = ("192.0.2.1", "2001:db8::1")
"""Addresses that are never assigned (RFC 5737, RFC 3849): only a default route leads there."""

ROUTES: Final = (Path("/proc/net/route"), Path("/proc/net/ipv6_route"))

_PORT: Final = 9
_NETLINK_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links; IPv4, IPv6 addresses and routes
_BUFFER: Final = 65536

_PROXY_VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")

Routed = Callable[[str], bool]


def routed(address: str) -> bool:
    """Return whether the kernel has a route to an IP address."""
    return source(address) is not None


def source(address: str) -> str | None:
    """Return this device's address towards an IP address, by connecting a UDP socket: nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _PORT))
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError):
        return None


def own_addresses(elsewhere: tuple[str, ...] = ELSEWHERE) -> frozenset[str]:
    """Return the addresses of this device from which packets to elsewhere would leave; none are sent."""
    return frozenset(found for address in elsewhere if (found := source(address)) is not None)


def has_link(
    host: str,
    *,
    routed: Routed = routed,
    environ: Mapping[str, str] = os.environ,
    routes: tuple[Path, ...] = ROUTES,
) -> bool:
    """Return whether there is a way to `host` (a name or an address, with a port or without).

    An address needs a route to it, a name a default route; but a name of the local network, or a proxy, may be reached
    without one, and any network is enough. Names are not resolved: that could wait for the network.
    """
    name = _without_port(host)
    if name.lower() == "localhost":
        return True
    if address := _address(name):
        return routed(address) or _proxied(environ)
    if any(routed(address) for address in ELSEWHERE):
        return True
    return (_is_local(name) or _proxied(environ)) and _has_network(routes)


class LinkWatch:
    """The kernel's events about links, addresses and routes. Raises OSError where it has none. Close it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, _NETLINK_GROUPS))
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return a descriptor that is readable when something has changed."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Discard the events received so far; the kernel is asked for the present state instead."""
        while True:
            try:
                self._socket.recv(_BUFFER)
            except BlockingIOError:
                return
            except OSError:  # the buffer overflowed: some are lost, which does no harm here
                continue

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


def _address(name: str) -> str | None:
    """Return `name` if it is an IP address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, name.partition("%")[0])
            return name
    return None


def _is_local(name: str) -> bool:
    """Return whether the local network may resolve a name: `pibox.local`, `pibox`."""
    bare = name.rstrip(".").lower()
    return "." not in bare or bare.endswith((".local", ".lan", ".home.arpa", ".internal"))


def _proxied(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name) for name in _PROXY_VARIABLES)


def _has_network(routes: tuple[Path, ...]) -> bool:
    """Return whether there is a route to any network other than loopback."""
    for file in routes:
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text("ascii").splitlines():
                words = line.split()
                if words and words[0] != "Iface" and "lo" not in (words[0], words[-1]):
                    return True
    return False
