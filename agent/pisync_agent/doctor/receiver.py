"""The receiver as this device sees it: TLS, a sign-in page in its place, its health, its answer to the token."""

import gzip
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import pisync_agent.answers as answers
from pisync_agent.client import AGENT, ReceiverClient
from pisync_agent.clock import SystemClock
from pisync_agent.doctor.findings import Finding, bad, ok, skipped, warn
from pisync_agent.doctor.network import Way
from pisync_agent.doctor.probing import Reply, Tls
from pisync_agent.doctor.service import last_failure
from pisync_agent.doctor.subject import Subject
from pisync_agent.errors import AgentError, DeliveryError, Overloaded, Refused, Unreachable
from pisync_agent.identity import Identity
from pisync_agent.network.certificates import Certificate
from pisync_common.models import Receipt
from pisync_common.times import from_ms
from pisync_common.wire import close_batch, open_batch

SOON: Final = timedelta(days=14)
"""A certificate that ends sooner should have been renewed."""

_DATES: Final = (9, 10)
"""OpenSSL's codes for a certificate that is not valid yet, and for an expired certificate."""
_ADMINISTRATOR: Final = (
    "Tell the administrator of the receiver; on this device there is nothing to do. Nothing is lost."
)
_SIGN_IN: Final = (
    "Open a web browser on this device, open any page, and sign in; then run: pisync sync   If no page asks for it, "
    "ask who runs this network to allow the receiver. Nothing is lost."
)


# Sign-in pages


def sign_in_text(reply: Reply, host: str) -> str | None:
    """Say how something answered in the receiver's place as sign-in pages do; None if nothing did."""
    if reply.answer is None:
        return "answers with what no receiver sends" if isinstance(reply.error, Unreachable) else None
    found = answers.sign_in(reply.answer.status, reply.answer.headers, host)
    return found.what if found else None


def check_sign_in(way: Way, direct: Reply, plain: Reply | None) -> Finding:
    """Judge whether the network wants a sign-in. `direct` came over the receiver's own port, `plain` over HTTP's."""
    if direct.own:
        return ok("sign-in", "none: the receiver itself answers")
    for reply in (direct, plain or Reply()):
        if text := sign_in_text(reply, way.host):
            return bad(
                "sign-in",
                f"This network wants a sign-in first, or filters: a request to {way.host} {text}.",
                advice=_SIGN_IN,
            )
    if plain is None or plain.answer is None:
        return ok("sign-in", "no sign of a sign-in page: plain HTTP is not answered")
    return ok("sign-in", f"no sign of a sign-in page: plain HTTP is answered with {plain.answer.status}")


# TLS


def check_tls(way: Way, tls: Tls, *, now: datetime, certain: bool) -> Finding:
    """Judge the handshake. `now` is the true time where `certain`, otherwise what the device's clock shows."""
    known = tls.certificate
    evidence = _certificate_evidence(known)
    if tls.error is None:
        if known is not None and now > known.not_after - SOON:
            return warn(
                "tls",
                f"The receiver's certificate expires on {known.not_after:%Y-%m-%d}, and was not renewed yet.",
                *evidence,
                advice="Tell the administrator now: on that day every device stops to deliver.",
            )
        return ok("tls", f"{tls.version}, certificate valid", *evidence)
    if tls.verify_code in _DATES:
        return _out_of_date(way, tls, evidence, now=now, certain=certain)
    if isinstance(tls.error, ssl.SSLCertVerificationError):
        issuer = f", issued by {known.issuer}," if known is not None else ""
        return bad(
            "tls",
            f"The certificate of {way.host}{issuer} cannot be trusted: {tls.error.verify_message}.",
            *evidence,
            advice="If the issuer is not the receiver's, this network reads along: sign in with a browser, or use "
            "another network. A private authority has to be named: pisync enroll … --ca FILE",
        )
    return bad(
        "tls",
        f"No secure connection to {way.host}: {_words(tls.error)}.",
        *evidence,
        advice="A filter of this network may block it, or the server does not offer TLS at that port: ask who runs the "
        "network, then the administrator.",
    )


def _out_of_date(way: Way, tls: Tls, evidence: tuple[str, ...], *, now: datetime, certain: bool) -> Finding:
    known = tls.certificate
    shown = (*evidence, f"{'true date' if certain else 'date on this device'}: {now:%Y-%m-%d}")
    if certain and known is not None and known.not_before <= now <= known.not_after:
        return bad(
            "tls",
            f"The certificate of {way.host} cannot be checked: by this device's clock it is not valid, though it is.",
            *shown,
            advice="Set the clock, see the line `clock`.",
        )
    day = "" if known is None else f" on {known.not_after:%Y-%m-%d}"
    if known is not None and now < known.not_before:
        what = f"The certificate of {way.host} is not valid before {known.not_before:%Y-%m-%d}"
    else:
        what = f"The certificate of {way.host} expired{day}"
    if certain:
        return bad("tls", f"{what}.", *shown, advice=f"The certificate has to be renewed. {_ADMINISTRATOR}")
    return bad(
        "tls",
        f"{what}, or the clock of this device is wrong.",
        *shown,
        advice="Compare the date on this device with a calendar. If it is right, tell the administrator that the "
        "certificate has to be renewed; if not, set the clock.",
    )


def _certificate_evidence(known: Certificate | None) -> tuple[str, ...]:
    if known is None:
        return ()
    dates = f"valid from {known.not_before:%Y-%m-%d} to {known.not_after:%Y-%m-%d}"
    return (f"issued by {known.issuer}", dates)


def blocks_tls(tls: Tls | None) -> bool:
    """Return whether the certificate is not valid at the time of this device's clock."""
    return tls is not None and tls.verify_code in _DATES


def true_time(now_ms: int, ahead_ms: int | None) -> datetime:
    """Return the time, corrected by what others said of it."""
    try:
        return from_ms(now_ms + (ahead_ms or 0))
    except (OverflowError, ValueError):
        return datetime.now(UTC)


# The receiver


def check_receiver(way: Way, reply: Reply) -> Finding:
    """Judge the answer to the question whether the receiver is ready."""
    answer, document = reply.answer, reply.document
    if answer is None:
        return bad(
            "receiver",
            f"{way.host} took the connection and gave no answer: {_words(reply.error)}.",
            advice=f"Try again in some minutes. If it stays so: {_ADMINISTRATOR}",
        )
    seen = f"answered {answer.status}, {answers.printable(answer.content_type) or 'of no type'}"
    if reply.own and document is not None and answer.status == 200:
        return ok("receiver", f"ready, version {answers.printable(document.get('version')) or 'not told'}")
    if reply.own:
        problem = answers.problem_of(answer)
        state = "cannot store" if answer.status == 503 else f"answers {answer.status}"
        return bad(
            "receiver",
            f"The receiver runs and {state}: {problem.detail if problem else 'it gives no reason'}",
            seen,
            advice=_ADMINISTRATOR,
        )
    if answer.status in (502, 503, 504):
        return bad(
            "receiver",
            f"A gateway answers {answer.status}: the receiver behind it is down.",
            seen,
            advice=f"Try again in some minutes. If it stays so: {_ADMINISTRATOR}",
        )
    return bad(
        "receiver",
        f"What answers at {way.url} is not a PiSync receiver, or a gateway before it changes its answers.",
        seen,
        advice="Compare the address with the administrator's. On a network with a sign-in page: sign in first.",
    )


# The credential


def ask_watermark(identity: Identity, stream: str, environ: Mapping[str, str]) -> Receipt:
    """Send a batch without events, as the service does to ask what has arrived. Raises AgentError."""
    clock = SystemClock()
    body = open_batch(device_id=identity.device_id, stream=stream, agent=AGENT) + close_batch(clock.stamp())
    with ReceiverClient(identity, clock=clock, environ=environ) as client:
        return client.post_batch(gzip.compress(body.encode()), stream=stream)


def check_credential(subject: Subject, result: Receipt | AgentError | TimeoutError | None) -> Finding:
    """Judge the receiver's answer to this device's token; None if it was not asked."""
    if result is None:
        return _by_last_run(subject)
    if isinstance(result, Receipt):
        return ok("credential", f"the receiver knows this device, and has events 1 to {result.watermark:,}")
    if isinstance(result, Refused):
        return _refused(str(result))
    if isinstance(result, Overloaded):
        return warn("credential", "The receiver is busy, and could not say.", str(result), advice="Wait a moment.")
    if isinstance(result, TimeoutError):
        return skipped("credential", "the receiver gave no answer in time")
    if isinstance(result, DeliveryError):
        return bad(
            "credential",
            f"The receiver's answer to this device is not as it should be: {result}",
            advice="Try again; if it stays so, tell the administrator this text.",
        )
    return skipped("credential", str(result))


def _by_last_run(subject: Subject) -> Finding:
    """Judge the token without using it, by what the service met."""
    failure = last_failure(subject)
    if failure.get("code") == Refused.code:
        return _refused(str(failure.get("detail", "")))
    if subject.identity is not None:
        return skipped("credential", "the receiver could not be asked")
    if subject.identity_fault:
        return skipped("credential", "only the agent's user may use the device's token: sudo pisync doctor")
    return skipped("credential", "this device is not enrolled")


def _refused(detail: str) -> Finding:
    return bad(
        "credential",
        "The receiver refused this device: its token was revoked, or the device was retired. Everything is kept.",
        detail,
        advice="Ask an administrator for a code made for this device, then: sudo pisync enroll URL --code CODE --again",
    )


def _words(error: Exception | None) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
