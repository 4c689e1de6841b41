"""What the absence of an answer means: pure decisions on the error of a request and on evidence about it."""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pisync_agent.answers import KEPT, RETRIED, SignIn, printable, to_sign_in
from pisync_agent.errors import Unreachable
from pisync_agent.network.certificates import Certificate
from pisync_common.models import Stamp
from pisync_common.times import format_ms

_SET_CLOCK: Final = "See `date`; the clock is set automatically once NTP is reachable (timedatectl)"
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_LONG_MS: Final = 20 * 365 * 86_400_000
"""A clock that shows so much more than is known is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What is known when a request got no answer."""

    now: Stamp
    known_ms: int = 0
    """A time that has passed for certain."""
    certificate: Certificate | None = None
    """The rejected certificate; None if it could not be read."""
    sign_in: SignIn | None = None
    """How plain HTTP to the receiver's host was answered, if no receiver answers so."""


def no_answer(error: BaseException, host: str, port: int, evidence: Evidence) -> Unreachable:
    """Return what the error of a request without an answer means, from the causes behind it."""
    for cause in causes(error):
        if isinstance(cause, Unreachable):
            return cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return bad_certificate(cause, host, evidence)
        if isinstance(cause, socket.gaierror | UnicodeError):
            return name_not_found(cause, host)
        if isinstance(cause, TimeoutError):
            return timed_out(host)
        if _is_tls_failure(cause):
            return no_tls(cause, host, port, evidence)
        if isinstance(cause, ConnectionRefusedError):
            return refused(host, port, evidence)
    return disconnected(error, host)


def tls_failure(error: BaseException) -> BaseException | None:
    """Return the failure of TLS behind an error, if there is one; a connection that ends is none."""
    return next(filter(_is_tls_failure, causes(error)), None)


def is_suspicious(error: BaseException) -> bool:
    """Return whether a sign-in page may be behind the failure of an https request: no TLS, or a closed port."""
    return any(_is_tls_failure(cause) or isinstance(cause, ConnectionRefusedError) for cause in causes(error))


def _is_tls_failure(cause: BaseException) -> bool:
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def proxy_failed(error: BaseException, proxy: str) -> Unreachable:
    """Return the error for what went wrong on the way to the proxy, or was refused by it."""
    kind, what = "connect", _reason(error)
    for cause in causes(error):
        if isinstance(cause, socket.gaierror | UnicodeError):
            kind, what = "dns", f"its name cannot be resolved: {_reason(cause)}"
        elif isinstance(cause, TimeoutError):
            kind, what = "timeout", "no answer in time"
        elif isinstance(cause, ssl.SSLError):
            kind, what = "tls", f"no secure connection: {_reason(cause)}"
    login = " It asks for a user name and a password." if what.startswith("407") else ""
    return Unreachable(
        f"no way through {proxy} ({printable(what)}). {KEPT}; {RETRIED}.{login} Ask who runs this network, or "
        "correct the variable where the agent is started",
        kind=kind,
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, the nearest first."""
    known: BaseException | None = error
    while known is not None:
        yield known
        known = known.__cause__ or known.__context__


def name_not_found(error: BaseException, host: str) -> Unreachable:
    return Unreachable(
        f"the name {host} cannot be resolved ({_reason(error)}). {KEPT}; {RETRIED}. If it persists, check this "
        "network's DNS, and the address given at enrollment",
        kind="dns",
    )


def timed_out(host: str) -> Unreachable:
    return Unreachable(
        f"{host} did not answer in time. {KEPT}, and what was in flight is sent again; {RETRIED}, with smaller batches",
        kind="timeout",
    )


def disconnected(error: BaseException, host: str) -> Unreachable:
    return Unreachable(
        f"no connection to {host}, or it was interrupted ({_reason(error)}). {KEPT}, and what was in flight is sent "
        f"again; {RETRIED}",
        kind="connect",
    )


def refused(host: str, port: int, evidence: Evidence) -> Unreachable:
    if evidence.sign_in is not None:
        return _intercepted(host, f"port {port} is closed", evidence.sign_in)
    return Unreachable(
        f"{host} refused the connection to port {port} (Connection refused). {KEPT}; {RETRIED}. If it persists, check "
        "that the receiver runs, and the address and port given at enrollment",
        kind="connect",
    )


def bad_certificate(error: ssl.SSLCertVerificationError, host: str, evidence: Evidence) -> Unreachable:
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        return _out_of_date(host, evidence, early=error.verify_code == _NOT_YET_VALID)
    known = evidence.certificate
    issued = "" if known is None else f", issued by {known.issuer}"
    if evidence.sign_in is not None:
        what = f"the certificate{issued} cannot be trusted ({error.verify_message})"
        return _intercepted(host, what, evidence.sign_in)
    return Unreachable(
        f"the certificate of {host}{issued} cannot be trusted ({error.verify_message}). {KEPT}; {RETRIED}. A private "
        "authority has to be named at enrollment (--ca); with any other issuer than the receiver's this network "
        "intercepts TLS: open any web page, it may require a sign-in",
        kind="tls",
    )


def _out_of_date(host: str, evidence: Evidence, *, early: bool) -> Unreachable:
    """Return the error for a certificate that is not valid at the time of this device's clock.

    The clock is blamed if it is certain to be wrong, and the certificate if the clock is synchronised.
    """
    now, known = evidence.now, evidence.certificate
    today = f"this device's date is {_date(now.at_ms)}"
    valid = ""
    if known is not None:
        valid = f" (valid from {known.not_before:%Y-%m-%d} to {known.not_after:%Y-%m-%d}, issued by {known.issuer})"
    if not evidence.known_ms <= now.at_ms <= evidence.known_ms + _LONG_MS:
        return Unreachable(
            f"this device's clock is wrong: it shows {_date(now.at_ms)}, and {_date(evidence.known_ms)} has passed "
            f"for certain. So the certificate of {host}{valid} cannot be checked. {KEPT}; {RETRIED}. {_SET_CLOCK}",
            kind="clock",
        )
    state = "is not valid yet" if early else "has expired"
    if now.clock_synced:
        return Unreachable(
            f"the certificate of {host}{valid} {state}; {today}, and its clock is synchronised. {KEPT}; {RETRIED}. "
            "Tell the administrator: the receiver's certificate has to be renewed",
            kind="tls",
        )
    return Unreachable(
        f"the certificate of {host}{valid} {state}, or this device's clock is wrong; {today}, and its clock is not "
        f"synchronised. {KEPT}; {RETRIED}. If that date is right, tell the administrator that the receiver's "
        f"certificate has to be renewed. If it is wrong: {_SET_CLOCK[0].lower()}{_SET_CLOCK[1:]}",
        kind="clock" if early else "tls",
    )


def _date(ms: int) -> str:
    return format_ms(ms)[:10]


def no_tls(error: BaseException, host: str, port: int, evidence: Evidence) -> Unreachable:
    reason = getattr(error, "reason", None) or _reason(error)
    if evidence.sign_in is not None:
        return _intercepted(host, f"there is no secure connection ({reason})", evidence.sign_in)
    return Unreachable(
        f"no secure connection to {host} ({reason}). {KEPT}; {RETRIED}. A filter may block TLS, or the server may not "
        f"offer TLS at port {port}",
        kind="tls",
    )


def _intercepted(host: str, what: str, sign_in: SignIn) -> Unreachable:
    return Unreachable(
        f"this network intercepts the connection to {host}: {what}, and plain HTTP {sign_in.what}. {KEPT}; {RETRIED}. "
        f"{to_sign_in(sign_in.host)}",
        kind="portal",
    )


def bad_ca_file(ca_file: str, error: Exception) -> Unreachable:
    return Unreachable(
        f"the certificate authority named at enrollment, {ca_file}, cannot be used ({_reason(error)}). {KEPT}. "
        "Put a PEM file there that this user can read, or enroll again with another file",
        kind="tls",
    )


def no_authorities(error: Exception) -> Unreachable:
    return Unreachable(
        f"this device has no certificate authorities, so no server can be trusted ({_reason(error)}). {KEPT}; "
        f"{RETRIED}. Install the package ca-certificates, or name the receiver's authority at enrollment (--ca)",
        kind="tls",
    )


def bad_proxy(error: Exception) -> Unreachable:
    return Unreachable(
        f"the proxy from the environment cannot be used: {error}. {KEPT}. Correct the variable where the agent is "
        "started",
        kind="connect",
    )


def _reason(error: BaseException) -> str:
    """Return what the system said at the root of an error."""
    for cause in reversed(list(causes(error))):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
