"""The import contracts hold, and their checker notices when they do not."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "pisync_common": ROOT / "common/pisync_common",
    "pisync_agent": ROOT / "agent/pisync_agent",
    "pisync_receiver": ROOT / "receiver/pisync_receiver",
}
THIRD_PARTY = {
    "pisync_common": set(),
    "pisync_agent": {"httpx", "platformdirs", "tenacity"},
    "pisync_receiver": {
        "httptools", "msgspec", "platformdirs", "prometheus_client", "starlette", "uvicorn", "uvloop", "zstandard",
        # Of extras beside it; the contracts say where each may be imported, a test below that nothing else needs them.
        "aio_pika", "apprise", "greenlet", "psycopg", "psycopg_pool", "redis",
    },
}  # fmt: skip
OWN = {
    "pisync_common": {"pisync_common"},
    "pisync_agent": {"pisync_common", "pisync_agent"},
    "pisync_receiver": {"pisync_common", "pisync_receiver"},
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The three packages and the contracts, free to be broken."""
    for source in PACKAGES.values():
        shutil.copytree(source, tmp_path / source.relative_to(ROOT), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(root / source.parent.relative_to(ROOT)) for source in PACKAGES.values())
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_hold(copy: Path) -> None:
    result = lint_imports(copy)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("common/pisync_common/limits.py", "import pisync_agent.errors", "common imports neither side"),
        ("common/pisync_common/limits.py", "import platformdirs", "common is the standard library alone"),
        ("agent/pisync_agent/errors.py", "import pisync_receiver.errors", "never import each other"),
        ("receiver/pisync_receiver/errors.py", "import pisync_agent.errors", "never import each other"),
        ("agent/pisync_agent/errors.py", "import httpx", "httpx only in the agent's client"),
        ("receiver/pisync_receiver/errors.py", "def f(): import httpx", "httpx only in the agent's client"),
        ("agent/pisync_agent/errors.py", "from sqlite3 import Error", "sqlite3 only in the outbox and the stores"),
        ("receiver/pisync_receiver/wire.py", "import sqlite3", "sqlite3 only in the outbox and the stores"),
        ("agent/pisync_agent/errors.py", "import msgspec", "the receiver's libraries stay in the receiver"),
        ("receiver/pisync_receiver/intake.py", "import psycopg", "PostgreSQL's driver only in its store"),
    ],
)
def test_a_forbidden_import_is_reported(copy: Path, module: str, planted: str, contract: str) -> None:
    path = copy / module
    path.write_text(path.read_text() + f"\n{planted}\n")

    result = lint_imports(copy)

    assert result.returncode == 1
    (broken,) = (line for line in result.stdout.splitlines() if contract in line and "BROKEN" in line)
    assert broken


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of what a module imports, at whatever depth."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_what_its_extra_installs_and_nothing_else(package: str) -> None:
    allowed = sys.stdlib_module_names | OWN[package] | THIRD_PARTY[package]

    foreign = {
        str(path.relative_to(ROOT)): names
        for path in PACKAGES[package].rglob("*.py")
        if (names := imported(ast.parse(path.read_text())) - allowed)
    }

    assert foreign == {}


@pytest.mark.parametrize("module", ["pisync_agent", "pisync_agent.cli"])
def test_the_command_starts_without_the_slow_libraries(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'httpx', 'tenacity', 'ssl'}} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.split() == []


def test_the_receiver_on_sqlite_needs_no_extra() -> None:
    extras = "{'greenlet', 'psycopg', 'psycopg_pool', 'redis', 'aio_pika', 'apprise'}"
    code = f"import sys, pisync_receiver.server, pisync_receiver.cli; print(*sorted({extras} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.split() == []
