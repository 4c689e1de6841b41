"""What an examination finds: one finding a check, causes before their effects.

CHECKS is in the order of the report. Of several findings the first bad one is the one to act on: what is below it may
be its effect.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Final


class Verdict(StrEnum):
    """What a check says."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    SKIPPED = "skipped"
    """Not examined; the summary says why."""


class Effect(IntEnum):
    """What a bad finding means for the device, the more severe the greater; it decides the exit code."""

    ATTENTION = 1
    UNREACHABLE = 2
    REFUSED = 3
    STORE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of one check, for a person who is not an engineer."""

    check: str
    """One of CHECKS."""
    verdict: Verdict
    summary: str
    evidence: tuple[str, ...] = ()
    """What was seen, a line each, for the person who is asked for help."""
    advice: str = ""
    """What to do; empty where there is nothing to do."""
    fix: str | None = None
    """The repair that `--fix` makes; None where there is none."""

    def fields(self) -> dict[str, Any]:
        """Return it as `doctor --json` prints it."""
        return {
            "check": self.check,
            "verdict": str(self.verdict),
            "summary": self.summary,
            "evidence": list(self.evidence),
            "advice": self.advice,
            "fix": self.fix,
        }


DEVICE_CHECKS: Final[Mapping[str, Effect]] = {
    "disk": Effect.STORE,
    "kernel": Effect.STORE,
    "folder": Effect.STORE,
    "outbox": Effect.STORE,
    "service": Effect.ATTENTION,
    "socket": Effect.ATTENTION,
    "strays": Effect.ATTENTION,
    "spool": Effect.ATTENTION,
    "enrollment": Effect.REFUSED,
}
NETWORK_CHECKS: Final[Mapping[str, Effect]] = {
    "interface": Effect.UNREACHABLE,
    "address": Effect.UNREACHABLE,
    "proxy": Effect.UNREACHABLE,
    "dns": Effect.UNREACHABLE,
    "tcp": Effect.UNREACHABLE,
    "sign-in": Effect.UNREACHABLE,
    "clock": Effect.UNREACHABLE,
    "tls": Effect.UNREACHABLE,
    "receiver": Effect.UNREACHABLE,
    "credential": Effect.REFUSED,
    "clone": Effect.ATTENTION,
}
QUEUE_CHECKS: Final[Mapping[str, Effect]] = {"backlog": Effect.ATTENTION, "rejected": Effect.ATTENTION}
CHECKS: Final[Mapping[str, Effect]] = {**DEVICE_CHECKS, **NETWORK_CHECKS, **QUEUE_CHECKS}

_PLACES: Final = {check: number for number, check in enumerate(CHECKS)}


def ok(check: str, summary: str, *evidence: str) -> Finding:
    return Finding(check=check, verdict=Verdict.OK, summary=summary, evidence=evidence)


def warn(check: str, summary: str, *evidence: str, advice: str, fix: str | None = None) -> Finding:
    return Finding(check=check, verdict=Verdict.WARN, summary=summary, evidence=evidence, advice=advice, fix=fix)


def bad(check: str, summary: str, *evidence: str, advice: str, fix: str | None = None) -> Finding:
    return Finding(check=check, verdict=Verdict.BAD, summary=summary, evidence=evidence, advice=advice, fix=fix)


def skipped(check: str, why: str, *evidence: str) -> Finding:
    return Finding(check=check, verdict=Verdict.SKIPPED, summary=f"not checked: {why}", evidence=evidence)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _PLACES[finding.check])


def first(findings: Sequence[Finding]) -> Finding | None:
    """Return the finding to act on first, of findings in order; None where there is nothing to do."""
    for verdict in (Verdict.BAD, Verdict.WARN):
        for finding in findings:
            if finding.verdict is verdict:
                return finding
    return None


def effect(findings: Iterable[Finding]) -> Effect | None:
    """Return the most severe effect of the bad findings; None without one."""
    return max((CHECKS[each.check] for each in findings if each.verdict is Verdict.BAD), default=None)
