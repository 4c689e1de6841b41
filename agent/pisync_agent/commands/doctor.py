"""`pisync doctor`: what is wrong with this device, and what to do first."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pisync_agent.config as config
from pisync_agent.commands.command import Command, add_json
from pisync_agent.commands.usage import DONE, PENDING, REFUSED, UNREACHABLE, UNUSABLE
from pisync_common import __version__

if TYPE_CHECKING:
    from pisync_agent.doctor.findings import Finding
    from pisync_agent.doctor.repairs import Repaired


def doctor(arguments: argparse.Namespace) -> int:
    """Examine this device and print the report; with --fix, repair what is safe to repair and examine it again."""
    home = config.settings_from(arguments)[config.HOME]
    show = _progress() if sys.stderr.isatty() else None
    findings, repaired = _examined(home, show, fix=arguments.fix)
    if show is not None:
        show("")
    code = exit_code(findings)
    from pisync_agent.doctor import report

    if arguments.json:
        print(json.dumps(report.fields(findings, repaired, code=code, version=__version__)))
    else:
        print(report.text(findings, repaired))
    return code


def exit_code(findings: "Sequence[Finding]") -> int:
    """Return the exit code of the most severe bad finding; warnings alone are none."""
    from pisync_agent.doctor.findings import Effect, effect

    codes = {
        Effect.ATTENTION: PENDING,
        Effect.UNREACHABLE: UNREACHABLE,
        Effect.REFUSED: REFUSED,
        Effect.STORE: UNUSABLE,
    }
    found = effect(findings)
    return DONE if found is None else codes[found]


def _examined(home: Path, show: Callable[[str], None] | None, *, fix: bool) -> "tuple[list[Finding], list[Repaired]]":
    from pisync_agent.doctor.examination import examine
    from pisync_agent.doctor.repairs import repair

    on_step = show or (lambda check: None)
    findings = examine(home, on_step=on_step)
    repaired: dict[str, Repaired] = {}
    while fix:  # each repair once: what is mended may have hidden something else
        wanted = {each.fix: each for each in findings if each.fix is not None and each.fix not in repaired}
        made = {name: repair(home, each) for name, each in wanted.items()}
        repaired |= made
        if not any(each.done for each in made.values()):
            break
        findings = examine(home, on_step=on_step)
    return findings, list(repaired.values())


def _progress() -> Callable[[str], None]:
    """Return a call that shows on a terminal what is being examined, and removes that again."""

    def show(checks: str) -> None:
        print(f"\r\x1b[K{f'examining: {checks}' if checks else ''}", end="", file=sys.stderr, flush=True)

    return show


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fix", action="store_true", help="make the repairs that are safe; events are never touched")
    add_json(parser)


DOCTOR: Final = Command(
    run=doctor,
    example="doctor",
    arguments=_arguments,
    more=(
        "Run it with sudo: some lines need an administrator. It takes less than 15\n"
        "seconds, whatever is broken. 0 means that there is nothing to do, though there\n"
        "may be warnings; 1 that there is something else to do."
    ),
)
