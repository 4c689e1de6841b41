"""The way to the receiver up to a TCP connection: interface, address, proxy, name, port."""

import contextlib
import fcntl
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pisync_agent.doctor.deadlines import Deadline, Pending, within
from pisync_agent.doctor.findings import Finding, bad, ok
from pisync_agent.identity import is_loopback
from pisync_agent.network.proxies import Proxy
from pisync_agent.sync.connectivity import has_link

DNS_S: Final = 3.5
TCP_S: Final = 2.5
ADDRESSES: Final = 4
"""The most addresses of a name that are tried."""

_PORTS: Final = {"http": 80, "https": 443}
_SIOCGIFADDR: Final = 0x8915
_IFF_UP: Final = 0x1
_INTERFACES: Final = 64
_KEPT: Final = "Nothing is lost meanwhile."
_NETWORK: Final = (
    "Connect this device to a network with internet, by cable or Wi-Fi, or by a phone that shares its own. " + _KEPT
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How the receiver is reached: by its own address, or by a proxy's."""

    url: str
    proxy: Proxy | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]

    @property
    def secure(self) -> bool:
        return self.url.startswith("https:")

    @property
    def local(self) -> bool:
        """Whether the receiver is on this device."""
        return is_loopback(self.host)

    @property
    def target(self) -> tuple[str, int]:
        """Where the connection goes first."""
        return (self.host, self.port) if self.proxy is None else (self.proxy.host, self.proxy.port)


@dataclass(frozen=True, kw_only=True, slots=True)
class Interface:
    """A network interface other than the loopback."""

    name: str
    up: bool
    """Whether it is switched on and has a signal."""
    addresses: tuple[str, ...] = ()
    wireless: bool = False

    @property
    def usable(self) -> list[str]:
        """Its addresses other than those that a device gives itself where no router answers."""
        return [each for each in self.addresses if not each.startswith(("169.254.", "fe80:"))]


def interfaces(folder: Path = Path("/sys/class/net")) -> list[Interface]:
    """Return the interfaces of this device. Raises OSError."""
    six = _ipv6_addresses()
    found = []
    for place in sorted(folder.iterdir())[:_INTERFACES]:
        if place.name == "lo" or not (place / "flags").exists():
            continue
        state = _text(place / "operstate")
        up = bool(int(_text(place / "flags") or "0", 16) & _IFF_UP) and state in ("up", "unknown")
        addresses = tuple(filter(None, (_ipv4_address(place.name), *six.get(place.name, ()))))
        wireless = (place / "wireless").exists() or place.name.startswith("wl")
        found.append(Interface(name=place.name, up=up, addresses=addresses, wireless=wireless))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _ipv4_address(name: str) -> str | None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    return None


def _ipv6_addresses(table: Path = Path("/proc/net/if_inet6")) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in _text(table).splitlines():
        words = line.split()
        if len(words) == 6:
            found.setdefault(words[5], []).append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0])))
    return found


def check_interface(found: list[Interface], way: Way) -> Finding:
    """Judge whether any interface is connected."""
    seen = tuple(f"{each.name}: {'connected' if each.up else 'not connected'}" for each in found)
    if way.local:
        return ok("interface", "none is needed: the receiver is on this device", *seen)
    if not any(each.up for each in found):
        wifi = " Look whether Wi-Fi is switched off (rfkill list)." if any(each.wireless for each in found) else ""
        what = "no interface is connected" if found else "it has no network interface"
        return bad("interface", f"This device has no network: {what}.", *seen, advice=f"{_NETWORK}{wifi}")
    return ok("interface", ", ".join(each.name for each in found if each.up), *seen)


def check_address(found: list[Interface], way: Way, environ: Mapping[str, str]) -> Finding:
    """Judge whether the network gave this device an address, and a way out."""
    seen = tuple(f"{each.name}: {', '.join(each.addresses) or 'no address'}" for each in found if each.up)
    if way.local:
        return ok("address", "none is needed: the receiver is on this device", *seen)
    usable = [address for each in found if each.up for address in each.usable]
    if not usable:
        return bad(
            "address",
            "The network gave this device no address: its router does not answer, or the Wi-Fi password is wrong.",
            *seen,
            advice="Switch the Wi-Fi off and on, or move the cable; then look whether other devices work here. "
            + _KEPT,
        )
    if not has_link(way.host, environ=environ):
        return bad(
            "address",
            "This network leads nowhere: the device has an address and no route out (no gateway).",
            *seen,
            advice="Ask who runs this network whether its router is connected to the internet. " + _KEPT,
        )
    return ok("address", ", ".join(usable[:3]), *seen)


def check_proxy(way: Way, source: str) -> Finding:
    """Say which proxy is in force. `source` says whose environment names it."""
    if way.proxy is None:
        return ok("proxy", f"none is used (by the environment of {source})")
    return ok("proxy", f"{way.proxy}, by the environment of {source}")


def bad_proxy(why: str, source: str) -> Finding:
    return bad(
        "proxy",
        f"The proxy cannot be used: {why}.",
        f"in the environment of {source}",
        advice="Correct the variable: sudo systemctl edit pisync-agent   then restart the service.",
    )


# Names


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """The addresses of a name, or the error of asking for them."""

    addresses: tuple[str, ...] = ()
    error: OSError | UnicodeError | None = None


Resolve = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name. Raises OSError, UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


def look_up(host: str, port: int, deadline: Deadline, resolve: Resolve = resolve) -> Resolved:
    """Resolve a name within a few seconds."""
    try:
        return Resolved(addresses=tuple(within(deadline.left(DNS_S), lambda: resolve(host, port))))
    except (OSError, UnicodeError) as error:
        return Resolved(error=error)


def check_dns(host: str, found: Resolved, servers: list[str]) -> Finding:
    """Judge the answer of the network's name service."""
    asked = f"asked: {', '.join(servers)}" if servers else "no name server is configured (/etc/resolv.conf)"
    if found.addresses:
        if found.addresses == (host,):
            return ok("dns", "not needed: the receiver's address is a number")
        return ok("dns", f"{host} is {', '.join(found.addresses[:3])}", asked)
    error = found.error
    if isinstance(error, socket.gaierror) and error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
        return bad(
            "dns",
            f"The name {host} is unknown on this network.",
            f"{error.strerror}; {asked}",
            advice="Look whether other web pages open on this device. If they do, the receiver's address is wrong: "
            "ask the administrator for it. " + _KEPT,
        )
    reason = getattr(error, "strerror", None) or error
    what = "gives no answer" if isinstance(error, TimeoutError) else f"fails ({reason})"
    return bad(
        "dns",
        f"Names cannot be resolved: the name service of this network {what}.",
        asked,
        advice="There is probably no internet behind this network. Ask who runs it, or try another network. " + _KEPT,
    )


def name_servers(file: Path = Path("/etc/resolv.conf")) -> list[str]:
    lines = (line.split() for line in _text(file).splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"][:3]


# Connections


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One attempt to connect."""

    address: str
    seconds: float
    error: OSError | None = None

    @property
    def text(self) -> str:
        if self.error is None:
            return f"{self.address}: connected in {self.seconds * 1000:.0f} ms"
        if isinstance(self.error, TimeoutError):
            return f"{self.address}: no answer in {self.seconds:.1f} s"
        return f"{self.address}: {self.error.strerror or self.error}"


def attempts(addresses: tuple[str, ...], port: int, deadline: Deadline) -> list[Attempt]:
    """Try to connect to all addresses at once; return the attempts up to the first that was accepted."""
    tries = [Pending(partial(_attempt, address, port, deadline)) for address in addresses[:ADDRESSES]]
    made: list[Attempt] = []
    for each in tries:
        made.append(each.result(2 * TCP_S))
        if made[-1].error is None:
            break
    return made


def _attempt(address: str, port: int, deadline: Deadline) -> Attempt:
    began, error = deadline.monotonic(), None
    try:
        connect(address, port, deadline.left(TCP_S)).close()
    except OSError as failed:
        error = failed
    return Attempt(address=address, seconds=deadline.monotonic() - began, error=error)


def connect(address: str, port: int, seconds: float) -> socket.socket:
    """Connect within `seconds`. Raises OSError; TimeoutError where nothing is left of the time."""
    if seconds <= 0:
        raise TimeoutError("no answer in time")
    return socket.create_connection((address, port), timeout=seconds)


def check_tcp(way: Way, tried: list[Attempt]) -> Finding:
    """Judge the attempts to connect."""
    host, port = way.target
    what = f"{host}, port {port}" if way.proxy is None else f"the proxy {host}, port {port}"
    evidence = tuple(each.text for each in tried)
    if tried and tried[-1].error is None:
        return ok("tcp", f"{what}: connected in {tried[-1].seconds * 1000:.0f} ms", *evidence[:-1])
    if any(isinstance(each.error, ConnectionRefusedError) for each in tried):
        return bad(
            "tcp",
            f"{what} refuses connections: the receiver does not run there, or the port is wrong.",
            *evidence,
            advice=f"Ask the administrator whether the receiver runs, and whether {way.url} is its address. " + _KEPT,
        )
    return bad(
        "tcp",
        f"{what} does not answer.",
        *evidence,
        advice="Look whether other web pages open on this device. If they do, a firewall of this network blocks the "
        "receiver, or the receiver is down: ask who runs the network, then the administrator. " + _KEPT,
    )
