"""Lock files: hashed, without addresses, and what pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT: Final = Path(__file__).parents[2]
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS: Final[dict[str, list[str]]] = (
    PYPROJECT["project"]["optional-dependencies"] | PYPROJECT["dependency-groups"]
)  # fmt: skip
FLEET: Final = {"receiver", "postgres", "redis", "broker", "alerts", "oidc"}
LOCKS: Final = {
    "requirements.lock": {"agent", *FLEET, "export", "dev"},
    "requirements-agent.lock": {"agent"},
    "requirements-receiver.lock": {"receiver"},
    "requirements-fleet.lock": FLEET,
}


def locked(file: str) -> dict[str, tuple[Version, list[str]]]:
    """Return the version and the hashes of each requirement of a lock file."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    requirements = {}
    for row in text.splitlines():
        if row and not row.lstrip().startswith("#"):
            requirement = Requirement(row.partition(" --hash=")[0])
            (exact,) = requirement.specifier
            assert exact.operator == "=="
            requirements[requirement.name] = (Version(exact.version), re.findall(r"--hash=(\S+)", row))
    return requirements


def wanted(file: str) -> list[Requirement]:
    return [Requirement(text) for group in LOCKS[file] for text in GROUPS[group]]


def test_every_lock_file_is_tested() -> None:
    assert {path.name for path in ROOT.glob("requirements*.lock")} == set(LOCKS)


@pytest.mark.parametrize("file", LOCKS)
def test_every_requirement_is_hashed(file: str) -> None:
    assert {name for name, (_, hashes) in locked(file).items() if not hashes} == set()
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", hash) for _, hashes in locked(file).values() for hash in hashes)


@pytest.mark.parametrize("file", LOCKS)
def test_a_lock_holds_no_address(file: str) -> None:
    text = (ROOT / file).read_text()

    assert "/" not in text.partition("\n")[2], "an address or a path"
    assert "index" not in re.sub(r"^\S+==.*", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("file", LOCKS)
def test_a_lock_fits_the_ranges(file: str) -> None:
    versions = {name: version for name, (version, _) in locked(file).items()}

    assert {r.name: str(versions[r.name]) for r in wanted(file) if not r.specifier.contains(versions[r.name])} == {}


@pytest.mark.parametrize("file", LOCKS)
def test_a_lock_is_made_for_what_pyproject_asks_for(file: str) -> None:
    """A comment below each requirement names what asks for it; this project's groups for development go unnamed."""
    rows = re.findall(r"^(\S+)==.*\n(?:    --hash.*\n)*((?: +#.*\n)*)", (ROOT / file).read_text(), re.MULTILINE)
    direct = {name for name, asked_by in rows if not asked_by or "pisync" in asked_by.split()}
    names = {requirement.name for requirement in wanted(file)}

    assert names - dict(rows).keys() == set()
    assert direct - names == set()


def test_all_locks_agree_on_versions() -> None:
    everything = locked("requirements.lock")

    for file in LOCKS:
        assert {name: version for name, (version, _) in locked(file).items() if everything[name][0] != version} == {}


def test_a_device_installs_pure_python_alone() -> None:
    assert set(locked("requirements-agent.lock")) == {
        "anyio", "certifi", "h11", "httpcore", "httpx", "idna", "platformdirs", "tenacity", "typing-extensions",
    }  # fmt: skip


def test_every_dependency_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    rows = [line for line in text.splitlines() if re.match(r'    "[\w\[\]-]+>=', line)]

    assert len(rows) == sum(len(group) for group in GROUPS.values())
    assert [row for row in rows if not re.search(r"# \w[\w ]{4,}", row)] == []
