"""Scripts, documents, settings and names of the repository agree."""

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
import yaml

import pisync_agent.commands.cli as agent_cli
import pisync_agent.config as agent_config
import pisync_receiver.commands.cli as receiver_cli
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


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_runs_and_is_named_in_the_readme(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert f"scripts/{script.name}" in (ROOT / "README.md").read_text()
    if "bash" in script.read_text().splitlines()[0]:
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_ci_runs_what_a_person_runs() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "scripts/test" in (ROOT / ".ci/run").read_text()
    assert "scripts/check" in (ROOT / "scripts/test").read_text()


def test_the_hosted_ci_tries_every_python_that_the_package_names() -> None:
    file = ROOT / ".github/workflows/test.yml"
    checked = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(file)]
    subprocess.run(checked, check=True, capture_output=True)
    job = yaml.safe_load(file.read_text())["jobs"]["test"]

    prefix = "Programming Language :: Python :: "
    named = [row.removeprefix(prefix) for row in PROJECT["classifiers"] if row.startswith(prefix)]
    assert job["strategy"]["matrix"]["python"] == named
    assert any(".ci/run" in step.get("run", "") for step in job["steps"])


def test_pre_commit_runs_the_checks() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] if repo["repo"] == "local" for hook in repo["hooks"]]
    checks = re.findall(
        r"^(ruff check|ruff format|mypy|lint-imports)", (ROOT / "scripts/check").read_text(), re.MULTILINE
    )

    assert len(hooks) == len(checks) == 4
    assert all(hook["entry"].startswith(f".venv/bin/{check}") for hook, check in zip(hooks, checks, strict=True))


def test_pictures_are_light() -> None:
    sizes = {name(path): path.stat().st_size for path in ROOT.glob("docs/pictures/window/*.webp")}

    assert sizes
    assert [path for path, size in sizes.items() if size > 150_000] == []
    assert sum(sizes.values()) <= 3_000_000


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    relative = [link.partition("#")[0] for link in links if "://" not in link]

    assert [link for link in relative if link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_scripts_named_in_a_document_exist(document: Path) -> None:
    named = set(re.findall(r"scripts/([a-z_-]+(?:\.py)?)", document.read_text()))

    assert {script for script in named if not (ROOT / "scripts" / script).exists()} == set()


def test_the_index_of_test_helpers_is_complete() -> None:
    folder = ROOT / "tests/support"
    named = set(re.findall(r"`(\w+)/?`", (folder / "README.md").read_text()))
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}

    assert named == modules | packages


def test_modules_of_the_symptom_table_exist() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n| symptom")[2].partition("\n## ")[0]
    named = re.findall(r"`(agent|receiver|common)/([a-z_/]+)`", section)
    paths = [ROOT / side / f"pisync_{side}" / module for side, module in named]

    assert len(paths) > 10
    assert [path for path in paths if not path.is_dir() and not path.with_suffix(".py").exists()] == []


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
    """Between releases the version says `.dev0`, and the changelog's newest section is open."""
    from pisync_common import __version__

    newest, date = re.findall(r"^## \[([^\]]+)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]

    if ".dev" in __version__:
        assert (newest, date) == ("Unreleased", "")
    else:
        assert newest == __version__
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_manifests_name_the_image_of_this_version() -> None:
    from pisync_common import __version__

    manifests = "".join(path.read_text() for path in (ROOT / "receiver/deploy/kubernetes").glob("*.yaml"))
    assert set(re.findall(r"image: pisync-receiver:(\S+)", manifests)) == {__version__.partition(".dev")[0]}
