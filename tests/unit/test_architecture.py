"""The import contracts hold, and their checker notices when they do not."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "pisync_common": ROOT / "common/pisync_common",
    "pisync_agent": ROOT / "agent/pisync_agent",
    "pisync_receiver": ROOT / "receiver/pisync_receiver",
}
EXTRAS = {"aio_pika", "apprise", "authlib", "joserfc", "psycopg", "psycopg_pool", "redis"}
THIRD_PARTY = {
    "pisync_common": set(),
    "pisync_agent": {"h11", "httpcore", "httpx", "platformdirs", "tenacity"},
    "pisync_receiver": {
        "httptools", "httpx", "jinja2", "markupsafe", "msgspec", "platformdirs",
        "prometheus_client", "segno", "starlette", "uvicorn", "uvloop",
        # Of further extras; the contracts say where each may be imported, a test below that nothing else needs them.
        *EXTRAS,
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
        (
            "agent/pisync_agent/errors.py",
            "import httpx",
            "httpx only in",
        ),
        (
            "receiver/pisync_receiver/errors.py",
            "def f(): import httpx",
            "httpx only in",
        ),
        (
            "agent/pisync_agent/errors.py",
            "from sqlite3 import Error",
            "sqlite3 only in",
        ),
        (
            "receiver/pisync_receiver/logs.py",
            "import sqlite3",
            "sqlite3 only in",
        ),
        ("agent/pisync_agent/errors.py", "import h11", "h11 only in the agent's HTTP"),
        ("agent/pisync_agent/errors.py", "import msgspec", "the receiver's libraries stay in the receiver"),
        ("receiver/pisync_receiver/intake.py", "import psycopg", "PostgreSQL's driver only in its store"),
        ("receiver/pisync_receiver/intake.py", "import redis", "Redis only in the cache"),
        ("receiver/pisync_receiver/intake.py", "import pisync_receiver.api", "the receiver's layers"),
        ("receiver/pisync_receiver/domain/decide.py", "import asyncio", "the receiver decides without I/O"),
        ("receiver/pisync_receiver/store/reading.py", "import pisync_receiver.domain.decide", "queries import nothing"),
        ("agent/pisync_agent/outbox/__init__.py", "import pisync_agent.commands", "the agent's layers"),
    ],
)
def test_a_forbidden_import_is_reported(copy: Path, module: str, planted: str, contract: str) -> None:
    path = copy / module
    path.write_text(path.read_text() + f"\n{planted}\n")

    result = lint_imports(copy)

    assert result.returncode == 1
    assert [line for line in result.stdout.splitlines() if contract in line and "BROKEN" in line]


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


def ancestors(module: str) -> list[str]:
    """Return the module and its packages: Python executes each of them to import it."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def import_graph(roots: Iterable[Path]) -> dict[str, set[str]]:
    """Return what each module imports, at whatever depth, counting each `__init__` that executes on the way."""
    files = {module_name(path, root): path for root in roots for path in root.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        executed = {name for target in targets for name in ancestors(target) if name in files}
        # The importer's own packages are being imported already; `from package import name` needs them completed.
        graph[module] = executed - (set(ancestors(module)) - targets) - {module}
    return graph


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return one circle of imports, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_imports_form_a_circle() -> None:
    assert circle(import_graph(PACKAGES.values())) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "import p.b", "b": "from p.a import x"}, ["p.a", "p.b"]),
        ({"a": "def f(): import p.b", "b": "from p import a"}, ["p.a", "p.b"]),
        ({"__init__": "from p.a import x", "a": "from p import b", "b": ""}, ["p", "p.a"]),
        ({"a": "from p.q.c import x", "q/__init__": "from p.a import y", "q/c": ""}, ["p.a", "p.q"]),
        ({"__init__": "from p.a import x", "a": "from p.b import x", "b": ""}, []),
    ],
)
def test_circles_are_found(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    for name, text in ({"__init__": ""} | files).items():
        path = tmp_path / "p" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert sorted(set(circle(import_graph([tmp_path / "p"])))) == expected


@pytest.mark.parametrize(("package", "most"), [("pisync_agent", 12), ("pisync_receiver", 14)])
def test_the_top_of_a_package_stays_small(package: str, most: int) -> None:
    assert len(list(PACKAGES[package].glob("*.py"))) <= most


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("pisync_agent", {"httpx", "tenacity", "ssl"}),
        ("pisync_agent.__main__", {"httpx", "tenacity", "ssl"}),
        ("pisync_agent.recorder", {"_hashlib", "random", "shutil", "tempfile"}),
        ("pisync_receiver.server", EXTRAS),
        ("pisync_receiver.__main__", EXTRAS),
    ],
)
def test_a_start_needs_no_further_libraries(module: str, unneeded: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({unneeded} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.split() == []
