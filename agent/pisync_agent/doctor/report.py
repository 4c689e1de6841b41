"""The report for people: the first thing to do, then a line a check; plain ASCII, at most 80 columns."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pisync_agent.doctor.findings import Finding, Verdict, first
from pisync_agent.doctor.repairs import Repaired

SCHEMA: Final = 1
"""Of the JSON: a greater number has other fields, or other meanings of them; new fields alone do not count."""

_WIDTH: Final = 80
_MARKS: Final = {Verdict.OK: "ok", Verdict.WARN: "WARN", Verdict.BAD: "BAD", Verdict.SKIPPED: "-"}
_INDENT: Final = 18
_WELL: Final = "First: nothing. This device is fine."


def text(findings: Sequence[Finding], repaired: Sequence[Repaired] = ()) -> str:
    """Return the report, its lines wrapped."""
    lines = [*_first(findings), ""]
    for each in repaired:
        lines += _wrapped(f"{'Fixed' if each.done else 'Not fixed'}: {each.text}")
    if repaired:
        lines.append("")
    for finding in findings:
        lines += _finding(finding)
    return "\n".join(lines)


def _first(findings: Sequence[Finding]) -> Iterator[str]:
    todo = first(findings)
    if todo is None:
        yield _WELL
        return
    yield from _wrapped(f"First: {todo.summary}")
    yield from _wrapped(f"Do:    {todo.advice}")
    others = [each.check for each in findings if each is not todo and each.verdict is Verdict.BAD]
    if others:
        yield from _wrapped(f"Then run the doctor again; also BAD: {', '.join(others)}.")


def _finding(finding: Finding) -> Iterator[str]:
    yield from _wrapped(f"{_MARKS[finding.verdict]:<5}{finding.check:<13}{finding.summary}", indent=_INDENT)
    if finding.verdict in (Verdict.BAD, Verdict.WARN):
        for each in finding.evidence:
            yield from _wrapped(f"{'':<{_INDENT}}({each})", indent=_INDENT + 1)
        yield from _wrapped(f"{'':<{_INDENT}}Do: {finding.advice}", indent=_INDENT + 4)


def _wrapped(line: str, *, indent: int = 7) -> list[str]:
    """Wrap a line; a word that is too long, such as a path, is cut rather than left beyond the edge."""
    return textwrap.wrap(
        _ascii(line), _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, drop_whitespace=True
    )


def _ascii(line: str) -> str:
    """Write dashes and quotes of foreign texts plainly; other characters stay, and the terminal shows what it can."""
    plain = line.translate(
        {0x2026: "...", 0x2013: "-", 0x2014: "-", 0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}
    )
    return "".join(char if char.isprintable() else " " for char in plain)


def fields(findings: Sequence[Finding], repaired: Sequence[Repaired], *, code: int, version: str) -> dict[str, Any]:
    """Return the report as `--json` prints it."""
    todo = first(findings)
    worst = next(
        (each for each in (Verdict.BAD, Verdict.WARN) if any(found.verdict is each for found in findings)), Verdict.OK
    )
    return {
        "schema": SCHEMA,
        "version": version,
        "verdict": str(worst),
        "exit_code": code,
        "first": None if todo is None else todo.fields(),
        "findings": [each.fields() for each in findings],
        "fixed": [{"fix": each.fix, "done": each.done, "text": each.text} for each in repaired],
    }
