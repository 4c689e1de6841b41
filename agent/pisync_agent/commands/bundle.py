"""What `pisync support` collects: sections, each of which may fail alone, bounded in size and time.

A section takes fields that are known to be harmless rather than leaving out those that are not; then everything is
redacted. A file is named only if PiSync made it.
"""

import importlib.metadata
import json
import os
import platform
import re
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pisync_agent.config as config
import pisync_agent.identity as identities
from pisync_agent.clock import kernel_sync_check
from pisync_agent.commands import status
from pisync_agent.commands.logs import UNIT
from pisync_agent.commands.redaction import MASK, Redactor
from pisync_agent.enrollment.enroll_file import load_pending
from pisync_agent.enrollment.state import PENDING
from pisync_agent.enrollment.zero_touch import IGNORED
from pisync_agent.errors import AgentError
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.service import views
from pisync_agent.service.http.access import TOKEN_FILE
from pisync_common import __version__, sqlite
from pisync_common.errors import PiSyncError
from pisync_common.limits import KIB
from pisync_common.settings import Settings

LIMIT_S: Final = 18.0
"""For everything together."""
JOURNAL_LINES: Final = 500
JOURNAL_BYTES: Final = 320 * KIB
SECTION_BYTES: Final = 64 * KIB
LINE_CHARS: Final = 1000
RUNS: Final = 100
FILES: Final = 300

_PAGE: Final = 500
_SCAN_S: Final = 3.0
_DOCTOR_S: Final = 15.0
_OURS: Final = re.compile(
    r"outbox\.(?:db|lock|reserve|probe)(?:-wal|-shm|-journal)?|outbox[.-][0-9A-Za-z.-]+|identity\.json(?:\.new)?"
    r"|runs(?:\.1)?\.jsonl|agent\.sock|receiver-ca\.(?:pem|new)|http-token|enroll-[a-z]+\.json|spool"
)
_UNIT_FACTS: Final = (
    "LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "NRestarts", "ExecMainCode", "ExecMainStatus",
    "ActiveEnterTimestamp", "MemoryCurrent", "TasksCurrent", "FragmentPath", "DropInPaths",
)  # fmt: skip
_LIBRARIES: Final = ("httpx", "httpcore", "tenacity", "platformdirs", "certifi")

Section = Callable[[], Any]


class Bundle:
    """The sections of one bundle. `environ` and `now` are those of this process."""

    def __init__(
        self, settings: Settings, *, environ: Mapping[str, str] = os.environ, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._home = settings[config.HOME]
        self._environ = environ
        self._now = now
        self._end = now() + LIMIT_S
        self._redactor = Redactor()
        self._scanned = "no event could be read by this user; known secrets are removed all the same"

    def collect(self) -> dict[str, bytes]:
        """Return the content of each file by its name."""
        self._add_secrets()
        events = self._section(self._events)  # first: it tells the redactor what to look for
        sections: dict[str, Section] = {
            "about": self._about,
            "status": lambda: status.collect(self._home),
            "settings": lambda: [row._asdict() for row in self._settings.describe()],
            "runs": lambda: views.runs(self._home, RUNS),
            "files": self._files,
            "disk": self._disk,
            "unit": self._unit,
        }
        found = {"events": events} | {name: self._section(section) for name, section in sections.items()}
        journal = self._redactor.text(self._journal())
        found["doctor"] = self._section(self._doctor)  # last: it has the time that is left
        files = {f"{name}.json": self._encoded(value) for name, value in found.items()}
        return files | {"journal.txt": _cut(journal, JOURNAL_BYTES), "README.txt": self._readme().encode()}

    def _section(self, section: Section) -> Any:
        """Return what a section finds; of its failure the kind and the text."""
        try:
            return section()
        except Exception as error:
            return {"unavailable": f"{type(error).__name__}: {error}"}

    def _encoded(self, value: Any) -> bytes:
        return _cut(json.dumps(self._redactor.value(value), indent=1, default=str), SECTION_BYTES)

    def _readme(self) -> str:
        return (
            "Made by `pisync support` for an engineer. It has no token, no code, no password, no learner and no\n"
            f"data of an event; what might be one is shown as {MASK}.\nCompared with the outbox: {self._scanned}.\n"
        )

    def _add_secrets(self) -> None:
        """Have tokens, codes, passwords of proxies, and variables that are no setting removed wherever they stand."""
        with suppress(AgentError, OSError):
            identity = identities.load(self._home)
            self._redactor.add(identity.token if identity else "")
        with suppress(OSError):
            self._redactor.add((self._home / TOKEN_FILE).read_bytes()[:1024].decode("ascii", "replace").strip())
        for name in (PENDING, IGNORED):
            with suppress(PiSyncError, OSError):
                pending = load_pending(self._home, name=name)
                self._redactor.add(pending.code if pending else "")
        settings = {setting.variable(config.PREFIX) for setting in config.SETTINGS} | {f"{config.PREFIX}CONFIG"}
        for name in filter(_matters, self._environ):
            if name.startswith(config.PREFIX) and name not in settings:
                self._redactor.add(self._environ[name])
            with suppress(ValueError):
                for part in urlsplit(self._environ[name]).netloc.rpartition("@")[0].split(":"):
                    self._redactor.add(part)
                    self._redactor.add(unquote(part))

    # Sections

    def _events(self) -> dict[str, Any]:
        """Count events by type and state, and add what they say to the redactor, for as long as there is time."""
        counts: Counter[str] = Counter()
        end = min(self._end, self._now() + _SCAN_S)
        with OutboxReader(self._home) as reader:
            letters = reader.dead_letters(limit=1000)
            for letter in letters:
                self._redactor.add_event(letter.body)
            after = 0
            while (rows := reader.list_events(after, _PAGE)) and self._now() < end:
                for _, body, state in rows:
                    self._redactor.add_event(body)
                    counts[f"{_type(body)} {state}"] += 1
                after = rows[-1][0]
        self._scanned = f"{counts.total():,} events{'' if not rows else ', and there are more'}"
        return {"by_type": dict(counts), "dead_letters": dict(Counter(letter.code for letter in letters))}

    def _about(self) -> dict[str, Any]:
        zone = time.strftime("%z")
        return {
            "pisync": __version__,
            "python": sys.version,
            "sqlite": sqlite.VERSION,
            "libraries": {name: _version(name) for name in _LIBRARIES},
            "system": _os_name(),
            "kernel": " ".join((platform.system(), platform.release(), platform.machine())),
            "model": _first_line(Path("/sys/firmware/devicetree/base/model")),
            "user": os.geteuid(),
            "groups": os.getgroups(),
            "variables": sorted(name for name in self._environ if _matters(name)),
            "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "zone": zone,
            "clock_synced": kernel_sync_check()(),
            "boottime_s": time.clock_gettime(time.CLOCK_BOOTTIME),
            "load": os.getloadavg(),
        }

    def _files(self) -> list[dict[str, Any]]:
        rows = []
        with os.scandir(self._home) as entries:
            for number, entry in enumerate(sorted(entries, key=lambda each: each.name)):
                found = entry.stat(follow_symlinks=False)
                known = _OURS.fullmatch(entry.name) is not None
                rows.append(
                    {
                        "name": entry.name if known else f"(another file, {number})",
                        "mode": stat.filemode(found.st_mode),
                        "owner": f"{found.st_uid}:{found.st_gid}",
                        "bytes": found.st_size,
                        "changed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime)),
                    }
                )
                if len(rows) == FILES:
                    break
        return rows

    def _disk(self) -> dict[str, Any]:
        found = os.statvfs(self._home)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_flag")
        return {name: getattr(found, name) for name in names} | {"mount": _mount(self._home)}

    def _unit(self) -> dict[str, str]:
        shown = self._output(["systemctl", "show", UNIT, f"--property={','.join(_UNIT_FACTS)}"], 2.0)
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line) or {"unavailable": shown}

    def _journal(self) -> str:
        command = ["journalctl", f"--unit={UNIT}", f"--lines={JOURNAL_LINES}", "--no-pager", "--output=short-iso"]
        lines = self._output(command, 4.0).splitlines()[-JOURNAL_LINES - 1 :]
        return "\n".join(line[:LINE_CHARS] for line in lines) + "\n"

    def _doctor(self) -> Any:
        """Run `pisync doctor --json` in a process of its own: it may take long, and must not end this."""
        # -P -s: never a module of the folder that root happens to be in, nor of the user who calls.
        command = [sys.executable, "-P", "-s", "-m", "pisync_agent", "doctor", "--json", "--home", str(self._home)]
        shown = self._output(command, _DOCTOR_S, {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        return json.loads(shown)

    def _output(self, command: Sequence[str], limit: float, environ: Mapping[str, str] | None = None) -> str:
        """Return what a program prints; what it complains about, if it prints nothing."""
        limit = max(0.5, min(limit, self._end - self._now()))
        try:
            done = subprocess.run(
                command,
                env={**self._environ, "LC_ALL": "C.UTF-8", **(environ or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=limit,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{command[0]}: {type(error).__name__}"
        return (done.stdout or done.stderr).decode(errors="replace")


def _matters(name: str) -> bool:
    return name.startswith(config.PREFIX) or name.lower().endswith("_proxy")


def _type(body: str) -> str:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "damaged"
    return str(found.get("type")) if isinstance(found, dict) else "damaged"


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _os_name() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_bytes()[:100].decode(errors="replace").strip("\0\n")
    except OSError:
        return None


def _mount(folder: Path) -> str | None:
    """Return the file system's mount point, options and type."""
    device = os.stat(folder).st_dev  # noqa: PTH116 - symmetrical to os.statvfs
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        words = line.split()
        if len(words) > 9 and words[2] == wanted:
            return " ".join([words[4], words[5], *words[words.index("-") + 1 :]])
    return None


def _cut(text: str, size: int) -> bytes:
    """Return the end of a text that is too long: the newest lines are there."""
    content = text.encode(errors="replace")
    return content if len(content) <= size else b"[cut]\n" + content[-size:]
