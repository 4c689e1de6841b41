"""The Debian packages: what is in them, and what they do on a Debian 12 machine under a real systemd."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

import build_packages
import pisync_agent.config as agent_config
import pisync_receiver.config as receiver_config
from pisync_agent.outbox.outbox import open_outbox
from pisync_common.settings import Setting, load
from tests.packaging.machine import Machine, machine
from tests.support.processes import wait_until
from tests.support.services import installed

ROOT: Final = Path(__file__).parents[2]
NEWER: Final = "99.0.0"
RESTARTS: Final = 3
NAMES: Final = ("pisync-agent", "pisync-receiver")

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb")


def build(folder: Path, *options: str, **environ: str) -> None:
    command = [str(ROOT / "scripts/build-packages"), "--output", str(folder), *options]
    subprocess.run(command, env=os.environ | environ, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both packages as the script builds them, by name."""
    folder = tmp_path_factory.mktemp("packages")
    build(folder)
    return {file.name.partition("_")[0]: file for file in folder.iterdir()}


@pytest.fixture(scope="module")
def trees(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each package installs, and its DEBIAN folder."""
    folder = tmp_path_factory.mktemp("trees")
    for name, file in packages.items():
        subprocess.run(["dpkg-deb", "--raw-extract", file, folder / name], check=True)
    return {name: folder / name for name in packages}


def field(package: Path, name: str) -> str:
    command = ["dpkg-deb", "--field", str(package), name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def pack(tree: Path, file: Path) -> Path:
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, file], check=True)
    return file


# Contents


def test_the_agents_package_serves_every_architecture(packages: dict[str, Path], trees: dict[str, Path]) -> None:
    files = [str(path.relative_to(trees["pisync-agent"])) for path in trees["pisync-agent"].rglob("*")]

    assert field(packages["pisync-agent"], "Architecture") == "all"
    assert [file for file in files if re.search(r"\.so\b|python3\.\d|cpython", file)] == []
    assert [file for file in files if "pisync_receiver" in file] == []


@pytest.mark.parametrize("name", NAMES)
def test_files_are_roots_with_plain_modes(packages: dict[str, Path], name: str) -> None:
    listed = subprocess.run(["dpkg-deb", "--contents", packages[name]], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=5) for line in listed.stdout.splitlines()]

    assert {row[1] for row in rows} == {"root/root"}
    assert {row[0] for row in rows} == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x"}
    assert {row[5] for row in rows if row[0] == "-rwxr-xr-x"} == {f"./usr/bin/{build_packages.PACKAGES[name].program}"}
    assert [row[5] for row in rows if "__pycache__" in row[5] or row[5].endswith(".pyc")] == []
    assert [row[5] for row in rows if row[5].startswith(("./usr/local/", "./opt/", "./var/", "./home/"))] == []


@pytest.mark.parametrize("name", NAMES)
def test_libraries_are_what_the_hashed_wheels_hold(trees: dict[str, Path], name: str) -> None:
    home = trees[name] / "usr/lib" / name
    folders = [folder for folder in home.iterdir() if folder.name == "libraries" or folder.name.startswith("cpython-")]
    found = {}
    for folder in folders:
        expected = set()
        for record in folder.glob("*.dist-info/RECORD"):
            distribution, version = record.parent.name.removesuffix(".dist-info").split("-")
            found[re.sub(r"[_.]", "-", distribution).lower()] = version
            for path, hashed, _ in csv.reader(record.read_text().splitlines()):
                if ".data/data/share/man/" in path:
                    continue
                expected.add(path)
                if hashed:
                    digest = base64.urlsafe_b64encode(hashlib.sha256((folder / path).read_bytes()).digest())
                    assert hashed == f"sha256={digest.decode().rstrip('=')}", path
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == expected

    lock = (ROOT / build_packages.PACKAGES[name].lock).read_text()
    assert found == dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))


def test_the_receivers_package_has_compiled_libraries_of_each_python(
    packages: dict[str, Path], trees: dict[str, Path]
) -> None:
    home = trees["pisync-receiver"] / "usr/lib/pisync-receiver"
    compiled = {
        folder.name: {path.relative_to(folder).parts[0].partition(".")[0] for path in folder.rglob("*.so")}
        for folder in home.glob("cpython-*")
    }

    assert set(compiled) == {f"cpython-{python.replace('.', '')}" for python in build_packages.PYTHONS}
    assert len({frozenset(names) for names in compiled.values()}) == 1
    assert list((home / "libraries").rglob("*.so")) == []
    assert field(packages["pisync-receiver"], "Architecture") != "all"
    assert "python3 (<< 3.14)" in field(packages["pisync-receiver"], "Depends")


@pytest.mark.parametrize("name", NAMES)
def test_units_start_what_the_package_installs(trees: dict[str, Path], name: str) -> None:
    units = list((trees[name] / "usr/lib/systemd/system").iterdir())
    programs = {
        line for unit in units for line in re.findall(r"^Exec\w+=(\S*pisync\S*)", unit.read_text(), re.MULTILINE)
    }

    assert programs == {f"/usr/bin/{build_packages.PACKAGES[name].program}"}


@pytest.mark.parametrize(
    ("name", "settings", "active"),
    [
        ("pisync-agent", agent_config.SETTINGS, {"home"}),
        ("pisync-receiver", receiver_config.SETTINGS, {"database_url"}),
    ],
)
def test_the_settings_file_shows_every_setting_with_its_default(
    trees: dict[str, Path], tmp_path: Path, name: str, settings: Sequence[Setting[Any]], active: set[str]
) -> None:
    shipped = trees[name] / "etc/pisync" / build_packages.PACKAGES[name].settings_file
    (conffile,) = (trees[name] / "DEBIAN/conffiles").read_text().splitlines()
    uncommented = tmp_path / "all.toml"
    uncommented.write_text(re.sub(r"^#(\w+ = )", r"\1", shipped.read_text(), flags=re.MULTILINE))
    values = {
        row.name: row.value
        for row in load(settings, prefix="X_", environ={}, flags={}, toml_file=uncommented).describe()
    }

    assert trees[name] / conffile[1:] == shipped
    assert set(tomllib.loads(shipped.read_text())) == active
    assert set(tomllib.loads(uncommented.read_text())) == {setting.name for setting in settings}
    for setting in settings:
        if setting.name not in active and isinstance(setting.default, str):
            assert values[setting.name] == setting.default


@pytest.mark.parametrize("python", build_packages.PYTHONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_command_starts_on_each_python(trees: dict[str, Path], tmp_path: Path, name: str, python: str) -> None:
    found = sorted(Path.home().glob(f".pyenv/versions/{python}.*/bin/python3"))
    if (interpreter := shutil.which(f"/usr/bin/python{python}") or (found and str(found[-1]))) in (None, []):
        pytest.skip(f"there is no Python {python}")
    launcher = tmp_path / "launcher"
    text = (trees[name] / "usr/bin" / build_packages.PACKAGES[name].program).read_text()
    assert text.startswith("#!/usr/bin/python3 -IS\n")  # neither the caller's environment nor other packages count
    launcher.write_text(text.replace("/usr/lib/", f"{trees[name]}/usr/lib/"))
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    settings = {"PISYNC_AGENT_HOME": str(tmp_path / "a"), "PISYNC_RECEIVER_DATABASE_URL": f"sqlite:///{tmp_path}/r.db"}
    arguments = ["status"] if name == "pisync-agent" else ["serve", "--port", "none"]

    done = subprocess.run(
        [str(interpreter), "-ISB", str(launcher), *arguments],
        cwd=tmp_path, env=environ | settings, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == (4 if name == "pisync-agent" else 2), done.stderr
    assert "not enrolled" in done.stdout or "port = 'none'" in done.stderr


def test_the_service_loads_no_module_that_it_does_not_need(trees: dict[str, Path]) -> None:
    """An idle service of 32 MiB has a place on a machine of 512 MiB. Each of these would take half a MiB or more."""
    heavy = "click decimal html.parser multiprocessing pydoc pygments rich tomllib unittest xml zoneinfo"
    home = trees["pisync-agent"] / "usr/lib/pisync-agent"
    code = (
        f"import sys; sys.path += ['{home}', '{home}/libraries']\n"
        "import pisync_agent.logs, pisync_agent.service.service\n"
        f"print(*(set('{heavy}'.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-ISBc", code], capture_output=True, text=True, check=True)

    assert done.stdout == "\n"


def test_the_same_commit_gives_the_same_bytes(packages: dict[str, Path], tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        build(tmp_path, "--package", "pisync-agent", TZ="Pacific/Apia", COLUMNS="200", LC_ALL="C")
    finally:
        os.umask(before)

    (again,) = tmp_path.iterdir()
    assert again.name == packages["pisync-agent"].name
    assert again.read_bytes() == packages["pisync-agent"].read_bytes()


def test_a_development_version_comes_before_its_release() -> None:
    versions = ["0.3.0.dev0", "0.3.0a1", "0.3.0rc1", "0.3.0", "0.3.1.dev0"]
    mapped = [build_packages.debian_version(version) for version in versions]

    assert mapped[0] == "0.3.0~dev0"
    for older, newer in zip(["0.3.0~dev0", *mapped[2:]], mapped[2:], strict=False):
        assert older == newer or not subprocess.call(["dpkg", "--compare-versions", older, "lt", newer])


@pytest.mark.parametrize("name", NAMES)
def test_lintian_has_no_complaint(trees: dict[str, Path], tmp_path: Path, name: str) -> None:
    installed("lintian")
    # Its complaints about compiled libraries are overridden as a whole, and looking into them takes it 20 s.
    shutil.copytree(trees[name], tmp_path / "tree", ignore=shutil.ignore_patterns("*.so*"))
    sums = tmp_path / "tree/DEBIAN/md5sums"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if ".so" not in line))
    file = pack(tmp_path / "tree", tmp_path / f"{name}_1_all.deb")
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


# On a machine


@pytest.fixture
def debian(packages: dict[str, Path], tmp_path: Path) -> Iterator[Machine]:
    """A machine that is not booted, with both packages in /srv, an app's user in no group, and the desktop's user."""
    with machine(tmp_path) as made:
        for file in packages.values():
            shutil.copy(file, made.root / "srv" / f"{file.name.partition('_')[0]}.deb")
        for user in ("kolibri", "pi"):
            made.run("useradd", "--create-home", user)
        yield made


def install(debian: Machine, *files: str) -> str:
    return debian.run("apt-get", "install", "-y", "-q", "--allow-downgrades", *files)


def status(debian: Machine) -> dict[str, Any]:
    return dict(json.loads(debian.run("pisync", "status", "--json", code=None)))


def newer(package: Path, folder: Path) -> Path:
    """Return the same package with a higher version, for Debian 12's Python alone."""
    tree, name = folder / "newer", field(package, "Package")
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    for path, pattern in (
        ("DEBIAN/control", r"(?<=^Version: ).+$"),
        (f"usr/lib/{name}/pisync_common/__init__.py", r'(?<=__version__ = ").+(?="$)'),
    ):
        text, count = re.subn(pattern, NEWER, (tree / path).read_text(), flags=re.MULTILINE)
        assert count == 1
        (tree / path).write_text(text)
    for other in tree.glob("usr/lib/*/cpython-3*"):
        if other.name != "cpython-311":
            shutil.rmtree(other)
    return pack(tree, folder / "newer.deb")


def test_two_commands_install_and_enroll_and_every_user_records(debian: Machine) -> None:
    debian.boot()
    install(debian, "/srv/pisync-receiver.deb")
    token = debian.run("pisync-receiver", "token", "create", "--scope", "admin")
    code = debian.run("pisync-receiver", "enrollment", "create").split()[-1]
    # What receivers on PostgreSQL and the worker need is there too, for the Python that Debian 12 has.
    paths = [f"/usr/lib/pisync-receiver/{folder}" for folder in ("libraries", "cpython-311")]
    libraries = "aio_pika, apprise, httptools, msgspec, psycopg, psycopg_pool, redis.asyncio, uvloop"
    debian.run("python3", "-ISc", f"import sys; sys.path += {paths}; import {libraries}")
    install(debian, "/srv/pisync-agent.deb")
    debian.run("pisync", "enroll", "http://127.0.0.1:8080", "--insecure-http", "--code", code, "--device-id", "pibox-1")
    debian.run("usermod", "--append", "--groups", "pisync", "kolibri")
    homes = [json.loads(debian.run("pisync", "config", "--json", user=user)) for user in ("root", "kolibri", "pi")]

    assert "psa_" in token
    assert all({"/var/lib/pisync"} == {row["value"] for row in rows if row["name"] == "home"} for rows in homes)
    for user in ("root", "kolibri"):
        shown = debian.run("pisync", "status", user=user)
        assert "pibox-1 at http://127.0.0.1:8080" in shown
        assert re.search(r"home +/var/lib/pisync$", shown, re.MULTILINE)
    assert "/var/lib/pisync" in debian.run("pisync", "status", user="pi", code=5)

    assert debian.run("pisync", "record", "video.watched") == "1\n"
    assert debian.run("pisync", "record", "video.watched", user="kolibri") == "2\n"
    refused = debian.run("pisync", "record", "video.watched", user="pi", code=5)
    assert "/var/lib/pisync" in refused

    program = "from pisync_agent import Recorder\nwith Recorder() as recorder: print(recorder.record('note.taken'))"
    assert debian.run("/usr/bin/python3", "-c", program, user="kolibri") == "3\n"
    for line in recipe():
        debian.run("sh", "-c", f"cd && {line}", user="kolibri")
    assert debian.run("sh", "-c", f'cd && app/bin/python -c "{program}"', user="kolibri") == "4\n"
    assert "No module" in debian.run("/usr/bin/python3", "-c", "import tenacity", user="kolibri", code=1)
    record_by_file_and_http(debian)

    debian.run("pisync", "sync")
    complete = json.loads(debian.run("pisync-receiver", "completeness", "pibox-1", "--json"))
    assert complete["complete"]
    assert [stream["stored"] for stream in complete["streams"]] == [6]
    assert not (debian.root / "home/pi/.local").exists()
    assert not (debian.root / "home/kolibri/.local").exists()
    owners = debian.run("find", "/var/lib/pisync", "!", "-user", "pisync", "-o", "-perm", "/o+rwx", "!", "-type", "d")
    assert owners == ""
    assert debian.run("find", "/var/lib/pisync-receiver", "!", "-user", "pisync-receiver") == ""
    for path, mode in {
        "/var/lib/pisync": "750 pisync:pisync",
        "/var/lib/pisync-receiver": "700 pisync-receiver:pisync-receiver",
        "/etc/pisync/receiver.toml": "640 root:pisync-receiver",
    }.items():
        assert debian.run("stat", "--format=%a %U:%G", path) == f"{mode}\n"

    # What is pending now, not what was when the last run ended.
    debian.run("systemctl", "stop", "pisync-receiver")
    debian.run("pisync", "record", "-", stdin='{"type": "video.watched"}\n' * 2)
    assert "with 2 events pending" in debian.run("apt-get", "remove", "-y", "pisync-agent")


def record_by_file_and_http(debian: Machine) -> None:
    """Record as the user kolibri in the ways of docs/apps.md: event 5 by a file, event 6 over HTTP."""
    spool = "/var/lib/pisync/spool"
    assert debian.run("stat", "--format=%a %U:%G", spool) == "3770 pisync:pisync\n"
    write = f'umask 027; cd {spool}; echo \'{{"type": "note.taken"}}\' > .notes; mv .notes notes.ndjson'
    debian.run("sh", "-c", f"{write}; while [ -e notes.ndjson ]; do sleep 0.1; done", user="kolibri")
    assert status(debian)["last_seq"] == 5

    settings = debian.root / "etc/pisync/agent.toml"
    settings.write_text(settings.read_text().replace('#http_port = ""', "http_port = 8747"))
    debian.run("systemctl", "restart", "pisync-agent")
    post = (
        "import time, urllib.request as http\n"
        "token = open('/var/lib/pisync/http-token').read().strip()\n"
        "request = http.Request('http://127.0.0.1:8747/v1/events', b'{\"type\": \"note.taken\"}')\n"
        "request.add_header('Authorization', 'Bearer ' + token)\n"
        "print(http.urlopen(request).read().decode())"
    )
    debian.run("sh", "-c", "until [ -e /var/lib/pisync/http-token ]; do sleep 0.1; done", user="kolibri")
    assert '{"results":[{"seq":6}]}' in debian.run("python3", "-c", post, user="kolibri")
    assert "PermissionError" in debian.run("python3", "-c", post, user="pi", code=1)
    assert (debian.root / "usr/share/pisync-agent/pisync.js").read_text().endswith("})(window);\n")


def recipe() -> list[str]:
    """The device guide's lines for an app in a virtual environment of its own."""
    section = (ROOT / "docs/device.md").read_text().partition("virtual environment")[2]
    (block,) = re.findall(r"```\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)[:1]
    # The machine has no ensurepip: the app's environment is made without pip.
    return [line.replace("-m venv app", "-m venv --without-pip app") for line in block.strip().splitlines()]


def test_upgrade_and_downgrade_keep_a_full_outbox_and_the_settings(
    debian: Machine, packages: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(newer(packages["pisync-agent"], tmp_path), debian.root / "srv/newer.deb")
    debian.boot()
    install(debian, "/srv/pisync-agent.deb")
    settings = debian.root / "etc/pisync/agent.toml"
    settings.write_text(settings.read_text().replace('#max_queue = "256MiB"', 'max_queue = "1MiB"'))
    edited = settings.read_text()
    debian.run("systemctl", "restart", "pisync-agent")
    event = json.dumps({"type": "note.taken", "data": {"text": "x" * 8000}})
    debian.run("pisync", "record", "-", stdin=f"{event}\n" * 300, code=5)
    before = status(debian)
    assert before["waiting"] > 50

    for file, version in (("newer", NEWER), ("pisync-agent", field(packages["pisync-agent"], "Version"))):
        install(debian, f"/srv/{file}.deb")
        after = status(debian)
        assert debian.run("dpkg-query", "--show", "--showformat=${Version}", "pisync-agent") == version
        assert f"pisync {version.replace('~', '.')}," in debian.run("journalctl", "--unit=pisync-agent")
        assert after["service"]
        assert {key: after[key] for key in ("stream", "waiting", "last_seq", "dead")} == {
            key: before[key] for key in ("stream", "waiting", "last_seq", "dead")
        }
        assert settings.read_text() == edited
        assert debian.run("find", "/var/lib/pisync", "!", "-user", "pisync") == ""


def test_a_disabled_service_stays_disabled_by_an_upgrade(
    debian: Machine, packages: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(newer(packages["pisync-agent"], tmp_path), debian.root / "srv/newer.deb")
    install(debian, "/srv/pisync-agent.deb")
    debian.run("systemctl", "disable", "pisync-agent")
    install(debian, "/srv/newer.deb")

    assert debian.run("systemctl", "is-enabled", "pisync-agent", code=1) == "disabled\n"


def test_removing_keeps_events_and_purging_names_and_deletes_them(debian: Machine) -> None:
    debian.boot()
    install(debian, "/srv/pisync-agent.deb")
    for _ in range(3):
        debian.run("pisync", "record", "video.watched")
    said = debian.run("apt-get", "remove", "-y", "pisync-agent")
    assert "3 events pending" in said
    assert not (debian.root / "usr/lib/pisync-agent").exists()
    assert debian.run("systemctl", "is-active", "pisync-agent", code=None) == "inactive\n"

    install(debian, "/srv/pisync-agent.deb")
    assert status(debian)["waiting"] == 3
    assert debian.run("pisync", "record", "video.watched") == "4\n"

    debian.run("apt-get", "remove", "-y", "pisync-agent")
    said = debian.run("apt-get", "purge", "-y", "pisync-agent")
    assert "deleting /var/lib/pisync: 4 events pending" in said
    for path in ("var/lib/pisync", "etc/pisync", "usr/lib/pisync-agent"):
        assert not (debian.root / path).exists(), path
    assert debian.run("getent", "passwd", "pisync", code=2) == ""
    assert debian.run("getent", "group", "pisync", code=2) == ""
    assert "pisync" not in debian.run("find", "/etc/systemd", "/usr/lib/python3", "-name", "*pisync*")


def test_the_receiver_keeps_its_database_until_it_is_purged(
    debian: Machine, packages: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(newer(packages["pisync-receiver"], tmp_path), debian.root / "srv/newer.deb")
    debian.boot()
    install(debian, "/srv/pisync-receiver.deb")
    debian.run("pisync-receiver", "token", "create", "--scope", "viewer", "--label", "district office")
    settings = debian.root / "etc/pisync/receiver.toml"
    settings.write_text(settings.read_text().replace('#port = "8080"', "port = 8090"))

    install(debian, "/srv/newer.deb")
    started = debian.run("journalctl", "--unit=pisync-receiver", "--output=cat")
    assert (
        f'"address":"http://127.0.0.1:8090","database":"/var/lib/pisync-receiver/receiver.db","version":"{NEWER}"'
        in started
    )
    assert "district office" in debian.run("pisync-receiver", "token", "list")

    debian.run("apt-get", "remove", "-y", "pisync-receiver")
    assert debian.run("systemctl", "is-active", "pisync-receiver", code=None) == "inactive\n"
    assert not (debian.root / "usr/lib/pisync-receiver").exists()
    assert (debian.root / "var/lib/pisync-receiver/receiver.db").stat().st_size > 0
    assert debian.run("stat", "--format=%a %U:%G", "/etc/pisync/receiver.toml") == "640 root:pisync-receiver\n"

    assert "deleting /var/lib/pisync-receiver: " in debian.run("apt-get", "purge", "-y", "pisync-receiver")
    for path in ("var/lib/pisync-receiver", "etc/pisync", "usr/lib/pisync-receiver"):
        assert not (debian.root / path).exists(), path
    assert debian.run("getent", "passwd", "pisync-receiver", code=2) == ""


def test_an_image_made_without_systemd_serves_from_its_first_boot(debian: Machine) -> None:
    install(debian, "/srv/pisync-agent.deb")
    assert debian.run("stat", "--format=%a %U:%G", "/var/lib/pisync") == "750 pisync:pisync\n"
    assert [path.name for path in (debian.root / "var/lib/pisync").iterdir()] == ["spool"]

    debian.boot()

    assert status(debian)["service"]
    assert debian.run("pisync", "record", "video.watched") == "1\n"


RECORDING: Final = """
import pathlib, sys
from pisync_agent import Recorder
number = 0
with Recorder() as recorder:
    while number < 100 or not pathlib.Path("/srv/enough").exists():
        recorder.record("note.taken", data={"from": sys.argv[1], "n": number}, timeout=60)
        number += 1
print(number)
"""


def test_no_record_fails_through_restarts_kills_and_an_upgrade(
    debian: Machine, packages: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(newer(packages["pisync-agent"], tmp_path), debian.root / "srv/newer.deb")
    debian.boot()
    install(debian, "/srv/pisync-agent.deb")
    debian.run("usermod", "--append", "--groups", "pisync", "kolibri")
    socket = debian.run("stat", "--format=%i %a %U:%G", "/var/lib/pisync/agent.sock")
    names = ("kolibri-1", "kolibri-2", "root-1")
    with ThreadPoolExecutor() as pool:
        recording = {
            name: pool.submit(debian.run, "python3", "-c", RECORDING, name, user=name.partition("-")[0])
            for name in names
        }
        for _ in range(RESTARTS):
            debian.run("systemctl", "restart", "pisync-agent")
            debian.run("systemctl", "kill", "--signal=KILL", "pisync-agent")
        debian.run("systemctl", "stop", "pisync-agent")
        install(debian, "/srv/newer.deb")
        (debian.root / "srv/enough").touch()
        recorded = {name: int(done.result()) for name, done in recording.items()}
    assert debian.run("stat", "--format=%i %a %U:%G", "/var/lib/pisync/agent.sock") == socket
    assert socket.split(maxsplit=1)[1] == "660 pisync:pisync\n"
    assert f"pisync {NEWER}," in debian.run("journalctl", "--unit=pisync-agent")

    debian.run("systemctl", "stop", "pisync-agent.socket")
    assert debian.run("systemctl", "is-active", "pisync-agent", code=None) == "inactive\n"
    refused = debian.run("pisync", "record", "note.taken", user="kolibri", code=5)
    assert "the service of /var/lib/pisync is not running" in refused
    assert "nothing was recorded. Start it: sudo systemctl start pisync-agent" in refused
    outbox = open_outbox(debian.root / "var/lib/pisync")
    found = [json.loads(body)["data"] for _, body in outbox.read(0, max_events=10**6, max_bytes=10**10)]
    outbox.close()
    assert sorted((each["from"], each["n"]) for each in found) == sorted(
        (name, number) for name, count in recorded.items() for number in range(count)
    )


PATIENT: Final = "from pisync_agent import Recorder; print(Recorder().record('note.taken', timeout=60))"


def send(debian: Machine, signal: str, unit: str) -> None:
    """Send a signal to a service's main process."""
    pid = debian.run("systemctl", "show", "--property=MainPID", "--value", unit).strip()
    debian.run("sh", "-c", f"kill -{signal} {pid}")


def test_a_device_enrolls_by_its_boot_file_and_outlives_what_a_school_does_to_it(debian: Machine) -> None:
    """From an image with an enrollment file, over a killed, a hung and a stopped service, to the card in another Pi."""
    for name in NAMES:
        install(debian, f"/srv/{name}.deb")
    code = debian.run("pisync-receiver", "enrollment", "create").split()[-1]
    boot = debian.root / "boot/firmware/pisync-enroll.toml"
    boot.parent.mkdir(parents=True)
    boot.write_bytes(f'receiver = "http://127.0.0.1:8080"\r\ncode = "{code}"\r\ndevice_id = "pibox-1"\r\n'.encode())
    watchdog = debian.root / "etc/systemd/system/pisync-agent.service.d/watchdog.conf"
    watchdog.parent.mkdir(parents=True)
    watchdog.write_text("[Service]\nWatchdogSec=3s\n")
    machine_id = debian.root / "etc/machine-id"
    machine_id.write_text("a" * 32 + "\n")
    for user in ("kolibri", "pi"):
        debian.run("usermod", "--append", "--groups", "pisync", user)

    debian.boot()
    wait_until(lambda: status(debian)["enrolled"], "the device enrolls")
    assert status(debian)["device_id"] == "pibox-1"
    assert not boot.exists()
    assert debian.run("grep", "-rl", code, "/boot", "/etc", "/run", "/tmp", "/var/lib/pisync", code=1) == ""
    assert code not in debian.run("journalctl")

    for seq, user in enumerate(("root", "kolibri", "pi"), start=1):
        assert debian.run("pisync", "record", "note.taken", user=user) == f"{seq}\n"
    send(debian, "KILL", "pisync-agent")
    assert debian.run("python3", "-c", PATIENT, user="pi") == "4\n"
    send(debian, "STOP", "pisync-agent")
    assert debian.run("python3", "-c", PATIENT, user="pi") == "5\n"
    assert int(debian.run("systemctl", "show", "--property=NRestarts", "--value", "pisync-agent")) >= 2

    send(debian, "STOP", "pisync-receiver")
    debian.run("sh", "-c", "pisync sync >/dev/null 2>&1 &")
    wait_until(lambda: status(debian)["syncing"], "a request waits for the receiver")
    debian.run("systemctl", "stop", "pisync-agent.socket", "pisync-agent.service")
    shown = debian.run("systemctl", "show", "--property=Result,TimeoutStopUSec", "pisync-agent")
    assert sorted(shown.split()) == ["Result=success", "TimeoutStopUSec=5s"]  # later than that, it would be "timeout"

    debian.power_off()
    machine_id.write_text("b" * 32 + "\n")
    debian.boot()
    moved = status(debian)
    assert (moved["enrolled"], moved["enrollment"]["kind"]) == (False, "moved")
    assert "another machine" in debian.run("pisync", "doctor", code=None)
    assert debian.run("pisync", "record", "note.taken", user="kolibri") == "6\n"
    assert "enroll --moved" in debian.run("pisync", "sync", code=4)

    debian.run("pisync", "enroll", "--moved")
    debian.run("pisync", "sync")
    complete = json.loads(debian.run("pisync-receiver", "completeness", "pibox-1", "--json"))
    assert complete["complete"]
    assert [stream["stored"] for stream in complete["streams"]] == [6]
