"""The checks on the way to the receiver, one after another: what is broken early makes the rest unnecessary."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from pisync_agent.doctor import clock, network, probing, receiver
from pisync_agent.doctor import outbox as outbox_checks
from pisync_agent.doctor.deadlines import Deadline, Pending, within
from pisync_agent.doctor.findings import NETWORK_CHECKS, Finding, Verdict, bad, ok, skipped
from pisync_agent.doctor.network import Attempt, Way
from pisync_agent.doctor.probing import Reply, Tls
from pisync_agent.doctor.subject import Subject
from pisync_agent.doctor.surroundings import Surroundings
from pisync_agent.errors import AgentError
from pisync_agent.network.proxies import proxy_for
from pisync_agent.sync.connectivity import has_link
from pisync_agent.sync.retry import parse_http_date
from pisync_common.errors import RuleError
from pisync_common.models import Receipt

_ELSEWHERE: Final = Way(url="https://192.0.2.1")
"""Stands for a receiver's address while there is none: never assigned (RFC 5737), only a default route leads there."""
_ENVIRON_BYTES: Final = 1_000_000


class WayChecks:
    """For one examination. `ahead_ms` is what was learnt of the true time."""

    def __init__(self, subject: Subject, around: Surroundings, deadline: Deadline) -> None:
        self.ahead_ms: int | None = None
        self._subject = subject
        self._around = around
        self._deadline = deadline
        self._why = "this device is not enrolled"
        self._receiver_ms: int | None = None
        self._ntp: Pending[tuple[int | None, str]] | None = None
        self._tls: Tls | None = None
        self._receipt: Receipt | None = None

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each of NETWORK_CHECKS, not in their order."""
        done = set()
        for finding in self._steps():
            done.add(finding.check)
            yield finding
        for check in NETWORK_CHECKS:
            if check not in done:
                yield self._without(check)

    def _without(self, check: str) -> Finding:
        """Return the finding of a check that the steps did not come to."""
        match check:
            case "clock":
                return self._clock()
            case "credential":
                return receiver.check_credential(self._subject, None)
            case "clone":
                return outbox_checks.check_clone(self._subject, self._receipt)
        return skipped(check, self._why)

    def _steps(self) -> Iterator[Finding]:
        url = self._subject.url
        environ, source = service_environ(self._subject, self._around.environ)
        found = self._around.interfaces()
        way = _ELSEWHERE if url is None else Way(url=url)
        interface = network.check_interface(found, way)
        yield interface
        if interface.verdict is Verdict.BAD:
            self._why = "this device has no network"
            return
        if has_link(_ELSEWHERE.host, environ={}):
            self._ntp = Pending(self._ask_ntp)
        if url is not None:
            try:
                way = Way(url=url, proxy=proxy_for(url, environ))
            except RuleError as error:
                yield network.check_address(found, way, environ)
                yield network.bad_proxy(str(error), source)
                self._why = "the proxy cannot be used"
                return
        address = network.check_address(found, way, environ)
        if url is None or (address.verdict is Verdict.BAD and not _has_address(found)):
            yield address
            self._why = "this device has no address" if address.verdict is Verdict.BAD else self._why
            return
        yield network.check_proxy(way, source)
        yield from self._connect(way, address)

    def _connect(self, way: Way, address: Finding) -> Iterator[Finding]:
        """Resolve the name and connect. A network without a way out may lead to a receiver in it all the same."""
        resolved = network.look_up(*way.target, self._deadline, self._around.resolve)
        tried = network.attempts(resolved.addresses, way.target[1], self._deadline)
        connected = bool(tried) and tried[-1].error is None
        if address.verdict is Verdict.BAD and not connected:
            yield address
            self._why = "this network leads nowhere"
            return
        if address.verdict is Verdict.BAD:
            address = ok("address", "this network has no way out, and the receiver is in it", *address.evidence)
        yield address
        yield network.check_dns(way.target[0], resolved, network.name_servers())
        if not resolved.addresses:
            self._why = "the receiver's address is unknown"
            return
        yield network.check_tcp(way, tried)
        if connected:
            yield from self._exchange(way, tried[-1].address)
        else:
            yield self._sign_in_without_connection(way, tried)

    def _sign_in_without_connection(self, way: Way, tried: list[Attempt]) -> Finding:
        """Look for a sign-in page where the receiver's own port is closed: a network may open it after the sign-in."""
        self._why = "there is no connection"
        if way.proxy is not None or way.local:
            return skipped("sign-in", self._why)
        plain = self._plain(way, tried[0].address)
        if plain.answer is None:
            return skipped("sign-in", self._why)
        return receiver.check_sign_in(way, Reply(), plain)

    def _exchange(self, way: Way, address: str) -> Iterator[Finding]:
        """Talk to what accepts connections."""
        reply, finding = self._ask(way, address)
        plain = None
        if not reply.own and way.proxy is None and way.secure and not way.local:
            plain = self._plain(way, address)
        if finding is None or finding.check != "tls" or self._tls is not None:
            sign_in = receiver.check_sign_in(way, reply, plain)
            yield sign_in
        yield self._clock()
        if finding is not None:
            yield finding
        elif way.secure and self._tls is not None:
            yield self._judged_tls(way, self._tls)
        elif not way.secure:
            yield skipped("tls", "this device was enrolled without it (plain HTTP)")
        if reply.answer is not None or reply.error is not None:
            yield receiver.check_receiver(way, reply)
        self._why = "there is no secure connection"
        if reply.own or (finding is not None and finding.verdict is Verdict.SKIPPED):
            yield self._credential()
        yield outbox_checks.check_clone(self._subject, self._receipt)

    def _ask(self, way: Way, address: str) -> tuple[Reply, Finding | None]:
        """Return the receiver's answer, and the finding about TLS where that could not be tried."""
        trust = None
        if way.secure:
            identity = self._subject.identity
            try:
                trust = probing.trust_of(None if identity is None else identity.ca_file)
                ask = partial(probing.shake_hands, way, address, trust, self._deadline)
                self._tls = within(self._deadline.left(2 * probing.STEP_S), ask)
            except probing.Unsupported as why:
                return Reply(), skipped("tls", str(why))
            except AgentError as error:
                return Reply(), bad("tls", "The certificate authority cannot be used.", str(error), advice=_AGAIN)
            except TimeoutError as error:
                self._tls = Tls(error=error)
            if self._tls.error is not None:
                return Reply(), None
        try:
            ask_ready = partial(probing.ask_ready, way, address, trust, self._deadline)
            reply = within(self._deadline.left(2 * probing.STEP_S), ask_ready)
        except TimeoutError as error:
            reply = Reply(error=error)
        self._note_time(reply)
        return reply, None

    def _plain(self, way: Way, address: str) -> Reply:
        try:
            reply = within(
                self._deadline.left(probing.STEP_S), partial(probing.ask_plainly, way, address, self._deadline)
            )
        except TimeoutError as error:
            reply = Reply(error=error)
        self._note_time(reply)
        return reply

    def _judged_tls(self, way: Way, tls: Tls) -> Finding:
        ahead = self.ahead_ms
        now = receiver.true_time(self._around.now_ms(), ahead)
        certain = ahead is not None or self._around.synced()
        finding = receiver.check_tls(way, tls, now=now, certain=certain)
        if self._subject.identity is None and finding.verdict is Verdict.BAD and tls.verify_code not in (0, 9, 10):
            return skipped(
                "tls", "only the agent's user knows which authority to trust: sudo pisync doctor", *finding.evidence
            )
        return finding

    def _credential(self) -> Finding:
        identity, stream = self._subject.identity, self._subject.outbox.get("stream")
        if identity is None or not stream:
            return receiver.check_credential(self._subject, None)
        environ = service_environ(self._subject, self._around.environ)[0]
        try:
            ask = partial(receiver.ask_watermark, identity, str(stream), environ)
            self._receipt = within(self._deadline.left(2 * probing.STEP_S), ask)
        except (AgentError, TimeoutError) as error:
            return receiver.check_credential(self._subject, error)
        return receiver.check_credential(self._subject, self._receipt)

    # Time

    def _ask_ntp(self) -> tuple[int | None, str]:
        for server in self._around.ntp_servers():
            ahead = self._around.ask_ntp(server)
            if ahead is not None:
                return ahead, server
        return None, ""

    def _clock(self) -> Finding:
        ntp_ms, server = None, ""
        if self._ntp is not None:
            right = self._receiver_ms is not None and abs(self._receiver_ms) <= clock.SETTLED_MS
            with suppress(TimeoutError):  # a clock that is right by the receiver's is worth no wait
                ntp_ms, server = self._ntp.result(0 if right else self._deadline.left(clock.NTP_S))
        self.ahead_ms = self._receiver_ms if ntp_ms is None else ntp_ms
        facts = clock.ClockFacts(
            now_ms=self._around.now_ms(),
            synced=self._around.synced(),
            ntp_ms=ntp_ms,
            ntp_server=server,
            receiver_ms=self._receiver_ms,
            ntp_off=self._around.ntp_off(),
        )
        return clock.check_clock(facts, blocks_tls=receiver.blocks_tls(self._tls))

    def _note_time(self, reply: Reply) -> None:
        """Note by how much an answer's `Date` is ahead of this device; it is that of a whole second."""
        if reply.answer is None or (date := parse_http_date(reply.answer.headers.get("date", ""))) is None:
            return
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        self._receiver_ms = round((date - epoch).total_seconds() * 1000) + 500 - self._around.now_ms()


_AGAIN: Final = "Put a PEM file there that the agent's user can read, or enroll again with --ca FILE."


def _has_address(found: list[network.Interface]) -> bool:
    return any(each.usable for each in found if each.up)


def service_environ(subject: Subject, environ: Mapping[str, str]) -> tuple[Mapping[str, str], str]:
    """Return the environment that names the service's proxy, and whose it is: this command's if that is hidden."""
    pid = (subject.live or {}).get("pid")
    if isinstance(pid, int):
        with suppress(OSError), Path(f"/proc/{pid}/environ").open("rb") as file:
            pairs = (each.partition(b"=") for each in file.read(_ENVIRON_BYTES).split(b"\0") if b"=" in each)
            return {
                name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs
            }, "the service"
    return environ, "this command"
