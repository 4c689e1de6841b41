"""Build pisync-agent_VERSION_all.deb and pisync-receiver_VERSION_ARCH.deb from this tree.

Each package holds this project's wheel and the wheels that its lock file names, each checked against its hash, so that
it installs without a network. The agent's are pure Python: one package serves every architecture and every Python. The
receiver's compiled wheels are there for each Python that pyproject.toml names, for one architecture.

The same commit gives the same bytes: every file has the time of the commit (SOURCE_DATE_EPOCH overrides it).
"""

import argparse
import functools
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final

import completion
import pisync_agent.commands.cli as agent_cli
import pisync_agent.config as agent_config
import pisync_receiver.commands.cli as receiver_cli
import pisync_receiver.config as receiver_config
from pisync_common import __version__
from pisync_common.settings import Setting

ROOT: Final = Path(__file__).parents[1]
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_PYTHON: Final = "Programming Language :: Python :: "
PYTHONS: Final = [row.removeprefix(_PYTHON) for row in PROJECT["classifiers"] if row.startswith(_PYTHON)]
WHEEL_PLATFORMS: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""Architectures for which the receiver's compiled libraries are published, by Debian's name."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """What one package is made of. Its units, scripts and `control` are in `systemd/` and `debian/` of its folder."""

    name: str
    program: str
    about: str
    parser: Callable[[], argparse.ArgumentParser]
    imports: tuple[str, ...]
    lock: str
    compiled: bool
    settings: Iterable[Setting[Any]]
    settings_file: str
    active: Mapping[str, str]
    """Settings that the installed file sets; all others are comments that show the default."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Small further files, by path."""

    @property
    def folder(self) -> Path:
        return ROOT / self.name.removeprefix("pisync-")

    @property
    def home(self) -> str:
        """Where its modules are installed."""
        return f"usr/lib/{self.name}"


AGENT: Final = Package(
    name="pisync-agent",
    program="pisync",
    about="keep what learners do on this device, and deliver it",
    parser=agent_cli.build_parser,
    imports=("pisync_agent", "pisync_common"),
    lock="requirements-agent.lock",
    compiled=False,
    settings=agent_config.SETTINGS,
    settings_file="agent.toml",
    active={"home": "/var/lib/pisync"},
    files={
        # For `import pisync_agent` in Debian's own Python: the recorder alone, without the libraries of the service.
        "usr/lib/python3/dist-packages/pisync-agent.pth": "/usr/lib/pisync-agent\n",
        # For web pages, which take a copy of it.
        "usr/share/pisync-agent/pisync.js": (ROOT / "agent/pisync_agent/web/pisync.js").read_text(),
    },
)
RECEIVER: Final = Package(
    name="pisync-receiver",
    program="pisync-receiver",
    about="store what PiSync's devices deliver",
    parser=receiver_cli.build_parser,
    imports=("pisync_receiver", "pisync_common"),
    lock="requirements-fleet.lock",
    compiled=True,
    settings=receiver_config.SETTINGS,
    settings_file="receiver.toml",
    active={"database_url": "sqlite:////var/lib/pisync-receiver/receiver.db"},
)
PACKAGES: Final = {package.name: package for package in (AGENT, RECEIVER)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/build-packages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder for the packages (dist)")
    parser.add_argument("--package", choices=PACKAGES, help="build only this package")
    parser.add_argument("--architecture", choices=WHEEL_PLATFORMS, help="the receiver's (default: this machine's)")
    arguments = parser.parse_args()
    if shutil.which("dpkg-deb") is None:
        sys.exit("build-packages: there is no dpkg-deb; on Debian and Ubuntu it is always there (apt install dpkg)")
    architecture = arguments.architecture or output_of("dpkg", "--print-architecture").strip()
    wanted = [package for package in PACKAGES.values() if arguments.package in (None, package.name)]
    if architecture not in WHEEL_PLATFORMS and RECEIVER in wanted:
        sys.exit(
            f"build-packages: the receiver's libraries are not published for {architecture}. Give --architecture amd64 "
            "or arm64; or --package pisync-agent, which serves every architecture"
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pisync-packages-") as work, ThreadPoolExecutor() as pool:
        wheel = own_wheel(Path(work))
        jobs = [
            pool.submit(build, package, wheel, architecture, Path(work) / package.name, arguments.output)
            for package in wanted
        ]
        for job in jobs:
            print(job.result())
    return 0


def build(package: Package, wheel: Path, architecture: str, work: Path, output: Path) -> Path:
    """Build one package and return its file."""
    stage = work / "stage"
    libraries = download(package, architecture, work / "wheels")
    unpack(wheel, stage / package.home, package.imports)
    for library in libraries:
        unpack(library, stage / package.home / library.parent.name)
    install(stage, package)
    write_control(stage, package, architecture if package.compiled else "all")
    normalise(stage)
    file = output / f"{package.name}_{debian_version()}_{architecture if package.compiled else 'all'}.deb"
    # Level 0 packs 130 MB of compiled libraries 12 times as fast as level 6, into a fifth more.
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", f"-z{0 if package.compiled else 9}", "--build"]
    environ = os.environ | {"SOURCE_DATE_EPOCH": str(commit_time())}
    subprocess.run([*command, str(stage), str(file)], env=environ, check=True, stdout=subprocess.DEVNULL)
    return file


def debian_version(version: str = __version__) -> str:
    """Return a version as Debian orders it: 0.3.0.dev0 and 0.3.0rc1 come before 0.3.0."""
    return re.sub(r"\.?(dev|a|b|rc)(?=\d)", r"~\1", version)


@functools.cache
def commit_time() -> int:
    try:
        return int(os.environ.get("SOURCE_DATE_EPOCH") or output_of("git", "log", "-1", "--format=%ct"))
    except (OSError, subprocess.CalledProcessError):
        sys.exit("build-packages: this tree has no git history to take the time from; set SOURCE_DATE_EPOCH")


# The wheels


def own_wheel(work: Path) -> Path:
    """Build this project's wheel."""
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(work), str(ROOT))
    (wheel,) = work.glob("pisync-*.whl")
    return wheel


def download(package: Package, architecture: str, work: Path) -> list[Path]:
    """Fetch the wheels of a package's lock, checked against its hashes, into `libraries` and `cpython-*` below `work`.

    The lock's markers are dropped: they are about older Pythons of the range, and the package serves the whole range.
    """
    work.mkdir(parents=True)
    lock = work / package.lock
    lock.write_text(re.sub(r" ; .*? \\$", r" \\", (ROOT / package.lock).read_text(), flags=re.MULTILINE))
    wanted = {python: work / f"cpython-{python.replace('.', '')}" for python in PYTHONS}
    if not package.compiled:
        wanted = {PYTHONS[0]: work / "cpython-any"}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda item: download_for(item[0], architecture, lock, item[1]), wanted.items()))
    pure = work / "libraries"
    pure.mkdir()
    for folder in wanted.values():
        for wheel in folder.glob("*-none-any.whl"):
            wheel.replace(pure / wheel.name)
    found = sorted(work.glob("*/*.whl"))
    if not package.compiled and (compiled := [wheel.name for wheel in found if wheel.parent != pure]):
        sys.exit(f"build-packages: {package.name} is for every architecture, but these are compiled: {compiled}")
    return found


def download_for(python: str, architecture: str, lock: Path, folder: Path) -> None:
    machine = WHEEL_PLATFORMS.get(architecture, architecture)  # whatever it is, pure Python is for it
    tags = [f"--platform={tag}_{machine}" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    pip(
        "download", "--require-hashes", "--no-deps", "--only-binary=:all:", "--implementation=cp",
        f"--python-version={python}", *tags, "--dest", str(folder), "--requirement", str(lock),
    )  # fmt: skip


def unpack(wheel: Path, folder: Path, imports: tuple[str, ...] = ()) -> None:
    """Unpack a wheel; of this project's, only the named modules and the metadata."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            top, _, rest = name.partition("/")
            if top.endswith(".data") and rest.startswith("data/share/man/"):
                continue  # the manual of a library's own command, which is not installed
            if top.endswith(".data"):
                sys.exit(f"build-packages: {wheel.name} installs files outside of its modules: {name}")
            metadata = top.endswith(".dist-info") and rest not in ("RECORD", "entry_points.txt")
            if not imports or top in imports or metadata:
                archive.extract(name, folder)


# The tree


def install(stage: Path, package: Package) -> None:
    """Add the program, units, settings and documentation."""
    copy(package.folder / "debian" / package.program, stage / "usr/bin" / package.program, mode=0o755)
    for unit in sorted((package.folder / "systemd").iterdir()):
        copy(unit, stage / "usr/lib/systemd/system" / unit.name)
    write(stage / "etc/pisync" / package.settings_file, settings_text(package))
    for path, text in package.files.items():
        write(stage / path, text)
    copy(package.folder / "debian/copyright", stage / "usr/share/doc" / package.name / "copyright")
    write_compressed(stage / "usr/share/doc" / package.name / "changelog.gz", changelog(package))
    write_compressed(stage / f"usr/share/man/man1/{package.program}.1.gz", manual(package))
    completions = completion.bash(package.program, package.parser())
    write(stage / "usr/share/bash-completion/completions" / package.program, completions)
    if (overrides := package.folder / "debian/lintian-overrides").exists():
        copy(overrides, stage / "usr/share/lintian/overrides" / package.name)


def settings_text(package: Package) -> str:
    """Return the settings file: every setting with its help, as a comment that shows its default."""
    lines = [
        f"# Settings of {package.name}, for its service and its commands alike. A comment shows a default: to change",
        f"# it, remove its # and restart the service. `{package.program} config` shows what is in force, and why.",
    ]
    for setting in package.settings:
        if setting.name in package.active:
            value, mark = package.active[setting.name], ""
        else:
            value, mark = setting.default if isinstance(setting.default, str) else "", "#"
        lines += ["", *textwrap.wrap(setting.help, 116, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"{mark}{setting.name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def manual(package: Package) -> str:
    """Return the manual page: the help of the program and of each of its commands."""
    os.environ["COLUMNS"] = "80"  # argparse folds lines to it
    moment = time.strftime("%Y-%m-%d", time.gmtime(commit_time()))
    lines = [
        f'.TH {package.program.upper()} 1 "{moment}" "PiSync {__version__}"',
        f".SH NAME\n{package.program} \\- {package.about}",
    ]
    for parser in parsers(package.parser()):
        text = parser.format_help().replace("\\", "\\e").replace("-", "\\-")
        literal = re.sub(r"^(?=[.'])", r"\\&", text.strip(), flags=re.MULTILINE)
        lines += [f".SH {parser.prog.upper()}", ".nf", literal, ".fi"]
    return "\n".join(lines) + "\n"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def changelog(package: Package) -> str:
    """Return Debian's changelog: one entry, which points to the project's own."""
    maintainer = re.search(r"^Maintainer: (.+)$", (package.folder / "debian/control").read_text(), re.MULTILINE)
    return (
        f"{package.name} ({debian_version()}) unstable; urgency=medium\n\n"
        "  * Built from the tree; CHANGELOG.md there says what changed.\n\n"
        f" -- {maintainer[1] if maintainer else ''}  {formatdate(commit_time())}\n"
    )


def write_control(stage: Path, package: Package, architecture: str) -> None:
    """Add DEBIAN/: control, the maintainer scripts, conffiles and md5sums."""
    folder = stage / "DEBIAN"
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    values = {
        "VERSION": debian_version(),
        "ARCHITECTURE": architecture,
        "INSTALLED_SIZE": str(sum(-(-path.stat().st_size // 1024) for path in files)),
        "NEXT_PYTHON": f"3.{max(int(python.partition('.')[2]) for python in PYTHONS) + 1}",
    }
    text = (package.folder / "debian/control").read_text()
    write(folder / "control", re.sub(r"@(\w+)@", lambda match: values[match[1]], text))
    write(folder / "conffiles", f"/etc/pisync/{package.settings_file}\n")
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(stage)}\n"
        for path in files
    ]
    write(folder / "md5sums", "".join(line for line in sums if "  etc/" not in line))
    for script in ("postinst", "prerm", "postrm"):
        copy(package.folder / "debian" / script, folder / script, mode=0o755)


def normalise(stage: Path) -> None:
    """Give every file and folder the same mode and time, whatever the umask and the clock."""
    for path in [stage, *stage.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (commit_time(), commit_time()))


def copy(source: Path, target: Path, mode: int = 0o644) -> None:
    write(target, source.read_text())
    target.chmod(mode)


def write_compressed(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(text.encode(), mtime=0))


def write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(0o644)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"build-packages: pip {arguments[0]} failed:\n{done.stderr}")


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
