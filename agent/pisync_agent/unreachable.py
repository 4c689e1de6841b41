"""What it means when no answer came: which part of the way is to blame, and what a person can do about it."""

import socket
import ssl
from collections.abc import Iterator
from typing import Final

from pisync_agent.answers import BY_ITSELF, KEPT
from pisync_agent.errors import Unreachable

_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10


def meaning(error: BaseException, host: str, *, clock_synced: bool) -> Unreachable:
    """The error of a request that got no answer, from the causes behind what httpx raised."""
    for cause in causes(error):
        if isinstance(cause, Unreachable):
            return cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return certificate(cause, host, clock_synced=clock_synced)
        if isinstance(cause, socket.gaierror | UnicodeError):
            return no_such_name(cause, host)
        if isinstance(cause, TimeoutError):
            return too_slow(host)
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return no_tls(cause, host)
    return cut(error, host)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, the nearest first."""
    known: BaseException | None = error
    while known is not None:
        yield known
        known = known.__cause__ or known.__context__


def no_such_name(error: BaseException, host: str) -> Unreachable:
    return Unreachable(
        f"the name {host} cannot be looked up ({_last_words(error)}). {KEPT}; {BY_ITSELF}. If it goes on, check this "
        "network's DNS, and the address that was given at enrollment",
        kind="dns",
    )


def too_slow(host: str) -> Unreachable:
    return Unreachable(
        f"{host} did not answer in time. {KEPT}, and what was under way is sent again; {BY_ITSELF}, with less at once",
        kind="timeout",
    )


def cut(error: BaseException, host: str) -> Unreachable:
    return Unreachable(
        f"no connection to {host}, or it broke off ({_last_words(error)}). {KEPT}, and what was under way is sent "
        f"again; {BY_ITSELF}",
        kind="connect",
    )


def certificate(error: ssl.SSLCertVerificationError, host: str, *, clock_synced: bool) -> Unreachable:
    early = error.verify_code == _NOT_YET_VALID
    if early or (error.verify_code == _EXPIRED and not clock_synced):
        when = "not valid yet" if early else "not valid any more"
        return Unreachable(
            f"by this device's clock the certificate of {host} is {when}, so the clock is wrong most likely. {KEPT}; "
            f"{BY_ITSELF}. See `date`; time comes by itself where the network lets NTP pass (timedatectl)",
            kind="clock",
        )
    return Unreachable(
        f"the certificate of {host} cannot be trusted ({error.verify_message}). {KEPT}; {BY_ITSELF}. It may have to be "
        "renewed, or a private authority named at enrollment (--ca), or this network reads along",
        kind="tls",
    )


def no_tls(error: ssl.SSLError, host: str) -> Unreachable:
    reason = getattr(error, "reason", None) or _last_words(error)
    return Unreachable(
        f"no secure connection to {host} ({reason}). {KEPT}; {BY_ITSELF}. Something in "
        "between may not let TLS pass, or there is no TLS at that port",
        kind="tls",
    )


def bad_ca_file(ca_file: str, error: Exception) -> Unreachable:
    return Unreachable(
        f"the certificate authority named at enrollment, {ca_file}, cannot be used ({_last_words(error)}). {KEPT}. "
        "Put a PEM file there that this user can read, or enroll again with another one",
        kind="tls",
    )


def bad_proxy(error: Exception) -> Unreachable:
    return Unreachable(
        f"the proxy that the environment names cannot be used ({_last_words(error)}). {KEPT}. "
        "Correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY where the agent is started",
        kind="connect",
    )


def _last_words(error: BaseException) -> str:
    """What the system said at the root of it."""
    for cause in reversed(list(causes(error))):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
