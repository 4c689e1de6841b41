"""Which proxy leads to the receiver, by the environment: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.

As curl and urllib read them: either case, the lower wins; `NO_PROXY` is a list of names, each with all names under it,
of addresses, of address ranges, each with a port or without, or `*`. Entries that are none of these are ignored. This
machine itself is never reached through a proxy.
"""

import contextlib
import ipaddress
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from pisync_agent.identity import is_host, is_loopback
from pisync_common.errors import RuleError

_PORTS: Final = {"http": 80, "https": 443}
_SEPARATORS: Final = re.compile(r"[,;\s]+")
_WITH_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it."""

    variable: str
    scheme: str
    host: str
    port: int
    login: tuple[str, str] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Name it without its login."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"the proxy {host}:{self.port} (from {self.variable})"


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy to use for `url`, which was checked before; None for none. Raises RuleError if it is unusable.

    The message names the variable and not its value, which may contain a password.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or _excepted(parts, _value("no_proxy", environ)[1]):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        variable, value = _value(name, environ)
        if value:
            return _parsed(variable, value)
    return None


def _value(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return a variable's name as it is set, and its value; a lower-case name set to nothing hides the other."""
    for variable in (name, name.upper()):
        if variable in environ:
            return variable, environ[variable].strip()
    return name, ""


def _parsed(variable: str, value: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        scheme, port, host = parts.scheme, parts.port, parts.hostname or ""
        valid = scheme in _PORTS and port != 0 and is_host(host)
        login = (unquote(parts.username), unquote(parts.password or "")) if parts.username is not None else None
    except ValueError:
        scheme, valid = "", False
    if scheme.startswith("socks"):
        raise RuleError(f"{variable} names a SOCKS proxy, which PiSync cannot use; name an HTTP proxy there")
    if not valid:
        raise RuleError(f"{variable} is not the address of a proxy; write it as http://proxy.example.org:3128")
    return Proxy(variable=variable, scheme=scheme, host=_ascii(host), port=port or _PORTS[scheme], login=login)


# NO_PROXY


def _excepted(parts: SplitResult, exceptions: str) -> bool:
    port = parts.port or _PORTS.get(parts.scheme, 0)
    return any(_matches(entry, parts, port) for entry in _SEPARATORS.split(exceptions) if entry)


def _matches(entry: str, parts: SplitResult, port: int) -> bool:
    scheme, found, rest = entry.rpartition("://")
    if found and scheme.lower() != parts.scheme:
        return False
    if with_port := _WITH_PORT.fullmatch(rest):
        if int(with_port[2]) != port:
            return False
        rest = with_port[1]
    if rest == "*":
        return True
    host = parts.hostname or ""
    address = _address(host)
    return _same_name(host, rest) if address is None else _within(address, rest)


def _within(address: Address, entry: str) -> bool:
    """Return whether `entry` is this address, or a range with it."""
    base, _, prefix = entry.partition("/")
    try:
        network = ipaddress.ip_network(f"{_bare(base)}/{prefix}" if prefix else _bare(base), strict=False)
    except ValueError:
        return False
    return address in network


def _address(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(_bare(host))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _bare(address: str) -> str:
    """Return an address without brackets and zone."""
    return address.strip("[]").partition("%")[0]


def _same_name(host: str, entry: str) -> bool:
    """Return whether `host` is the name of `entry`, or a name under it."""
    names = _spellings(entry.removeprefix("*").lstrip("."))
    return any(
        found == name or found.endswith(f".{name}") for found in _spellings(host) for name in names if name.strip(".")
    )


def _spellings(name: str) -> set[str]:
    """Return a name as it is written and as DNS knows it, by the old rules of IDNA and by the new."""
    plain = unicodedata.normalize("NFKC", name).rstrip(".").lower()
    labels = [each if each.isascii() else f"xn--{each.encode('punycode').decode()}" for each in plain.split(".")]
    with contextlib.suppress(ValueError):
        return {plain, ".".join(labels), _ascii(plain)}
    return {plain, ".".join(labels)}


def _ascii(name: str) -> str:
    """Return a name as DNS knows it. Raises UnicodeError (a ValueError) if it is not a name."""
    return name if name.isascii() else name.encode("idna").decode("ascii").lower()
