"""The repository keeps its own word: scripts, locks, documents and names agree."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import pisync_agent.cli as agent_cli
import pisync_agent.config as agent_config
import pisync_receiver.cli as receiver_cli
import pisync_receiver.config as receiver_config
from pisync_common.settings import Setting

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PROGRAMS = {
    "pisync": (agent_config.SETTINGS, agent_config.PREFIX),
    "pisync-receiver": (receiver_config.SETTINGS, receiver_config.PREFIX),
}
LOCKS = {
    "requirements.lock": ("agent", "receiver", "dev"),
    "requirements-agent.lock": ("agent",),
    "requirements-receiver.lock": ("receiver",),
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def locked(file: str) -> dict[str, tuple[Version, list[str]]]:
    """Name -> (version, hashes) of each requirement in a lock file."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    rows = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    requirements = {}
    for row in rows:
        requirement = Requirement(row.partition(" --hash=")[0])
        (exact,) = requirement.specifier
        assert exact.operator == "=="
        requirements[requirement.name] = (Version(exact.version), re.findall(r"--hash=(\S+)", row))
    return requirements


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_runs_and_is_named_in_the_readme(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert f"scripts/{script.name}" in (ROOT / "README.md").read_text()
    if "bash" in script.read_text().splitlines()[0]:
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_ci_runs_what_a_person_runs() -> None:
    run = ROOT / ".ci/run"

    assert os.access(run, os.X_OK)
    assert "scripts/test" in run.read_text()


@pytest.mark.parametrize("file", LOCKS)
def test_a_lock_has_hashes_and_no_address(file: str) -> None:
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", hash) for _, hashes in locked(file).values() for hash in hashes)
    assert all(hashes for _, hashes in locked(file).values())
    body = "\n".join(line for line in (ROOT / file).read_text().splitlines() if not line.startswith("# Made by"))
    assert "/" not in body, "an address or a path"


@pytest.mark.parametrize(("file", "extras"), LOCKS.items())
def test_a_lock_fits_the_ranges(file: str, extras: tuple[str, ...]) -> None:
    versions = {package: version for package, (version, _) in locked(file).items()}
    wanted = [Requirement(text) for extra in extras for text in PROJECT["optional-dependencies"][extra]]

    assert {r.name: str(versions[r.name]) for r in wanted if not r.specifier.contains(versions[r.name])} == {}


def test_a_device_installs_pure_python_alone() -> None:
    assert set(locked("requirements-agent.lock")) == {
        "anyio", "certifi", "h11", "httpcore", "httpx", "idna", "platformdirs", "tenacity", "typing-extensions",
    }  # fmt: skip


def test_every_dependency_has_its_reason() -> None:
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    rows = [line for line in extras.splitlines() if line.startswith("    ")]

    assert len(rows) == sum(len(group) for group in PROJECT["optional-dependencies"].values())
    assert [row for row in rows if not re.search(r"# \w[\w ]{4,}", row)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    relative = [link.partition("#")[0] for link in links if "://" not in link]

    assert [link for link in relative if link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_scripts_named_in_a_document_exist(document: Path) -> None:
    named = set(re.findall(r"scripts/([a-z_-]+(?:\.py)?)", document.read_text()))

    assert {script for script in named if not (ROOT / "scripts" / script).exists()} == set()


def table(settings: Iterable[Setting[Any]], prefix: str) -> str:
    """The settings as a Markdown table."""
    rows = ["| setting | variable | default | what |", "|---|---|---|---|"]
    for setting in settings:
        default = setting.stated_default()
        shown = f"`{default}`" if default else ""
        rows.append(f"| `{setting.name}` | `{setting.variable(prefix)}` | {shown} | {setting.help} |")
    return "\n".join(rows)


@pytest.mark.parametrize(("settings", "prefix"), PROGRAMS.values(), ids=PROGRAMS)
def test_the_settings_page_is_what_the_programs_read(settings: Iterable[Setting[Any]], prefix: str) -> None:
    expected = table(settings, prefix)

    assert expected in (ROOT / "docs/settings.md").read_text(), f"docs/settings.md should have:\n{expected}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_variables_named_in_a_document_exist(document: Path) -> None:
    known = {setting.variable(prefix) for settings, prefix in PROGRAMS.values() for setting in settings}
    files = {f"{prefix}CONFIG" for _, prefix in PROGRAMS.values()}
    tests = set(re.findall(r"PISYNC_TEST_[A-Z]+", (ROOT / "scripts/services").read_text()))

    assert set(re.findall(r"PISYNC_[A-Z_]*[A-Z]\b(?!_)", document.read_text())) - known - files - tests == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_in_a_document_are_understood(document: Path) -> None:
    parsers = {"pisync": agent_cli.build_parser(), "pisync-receiver": receiver_cli.build_parser()}
    blocks = "".join(re.findall(r"^```\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE))
    for line in re.findall(r"^pisync\b.*", blocks, re.MULTILINE):
        program, *arguments = shlex.split(line.partition(" < ")[0], comments=True)
        if arguments != ["--help"]:
            parsers[program].parse_args(arguments)  # ends the program, and so the test, if it does not understand


def test_the_readme_program_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PISYNC_AGENT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.stdout, result.stderr) == ("event 1 is safe on this device\n", "")


def test_the_public_names_of_the_agent() -> None:
    import pisync_agent

    assert set(pisync_agent.__all__) == {"InvalidEvent", "OutboxFull", "Recorder", "StoreUnusable"}
    assert all(getattr(pisync_agent, public) for public in pisync_agent.__all__)


def test_the_version_is_the_newest_in_the_changelog() -> None:
    from pisync_common import __version__

    (newest, *_) = re.findall(
        r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert newest == __version__
