"""Every command of `pisync-receiver`, as a process: what it prints where, and how it ends."""

import json
import re
import shlex
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.devices import MadeUpDevice
from tests.support.processes import ReceiverProcess

CODE = re.compile(r"([0-9A-HJKMNP-TV-Z]{4}-){3}[0-9A-HJKMNP-TV-Z]{4}\n")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    """A receiver that serves for all tests of this module that only add to it."""
    with ReceiverProcess(tmp_path_factory.mktemp("receiver")) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path_factory.mktemp("filled")) as receiver:
        code = receiver.enrollment_code("--uses", "2", "--site", "Nakuru")
        with (
            MadeUpDevice(receiver.url, code, device_id="well") as well,
            MadeUpDevice(receiver.url, code, device_id="ill") as ill,
        ):
            for minute in range(5):
                at = f"2026-11-23T10:0{minute}:00.000Z"
                assert well.post_sync_event(timestamp=at).status_code == 201
                assert ill.post_sync_event(timestamp=at, total_errors=2, errors={"tls": 2}).status_code == 201
        yield receiver


@pytest.fixture
def idle(tmp_path: Path) -> ReceiverProcess:
    """A receiver that does not serve, and has no database yet."""
    return ReceiverProcess(tmp_path / "receiver")


def get(receiver: ReceiverProcess, path: str, token: str) -> httpx.Response:
    return httpx.get(receiver.url + path, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=60)


def token_id(stderr: str) -> str:
    """The id in what `token create` says beside the token."""
    found = re.search(r" token (\d+)\.", stderr)
    assert found, stderr
    return found[1]


class TestTokens:
    def test_a_token_is_printed_alone_and_works_at_once(self, served: ReceiverProcess) -> None:
        made = served.run("token", "create", "--role", "admin")
        assert re.fullmatch(r"psa_[A-Za-z0-9_-]{43}\n", made.stdout)
        assert made.returncode == 0
        assert made.stdout.strip() not in made.stderr
        assert get(served, "/api/devices", made.stdout.strip()).status_code == 200

    def test_a_revoked_token_stops_at_once(self, served: ReceiverProcess) -> None:
        made = served.run("token", "create", "--scope", "viewer", "--label", "district", "--site", "Nakuru")
        token, number = made.stdout.strip(), token_id(made.stderr)
        assert get(served, "/api/devices", token).status_code == 200
        assert number in served.command("token", "revoke", number)
        assert get(served, "/api/devices", token).status_code == 401
        row = {str(row["id"]): row for row in served.json("token", "list", "--scope", "viewer")}[number]
        assert row["revoked_at"] is not None
        assert (row["label"], row["sites"]) == ("district", ["Nakuru"])

    def test_no_list_shows_a_secret(self, served: ReceiverProcess) -> None:
        token = served.admin_token()
        for flags in ((), ("--json",)):
            shown = served.command("token", "list", *flags)
            assert token not in shown
            assert "hash" not in shown

    def test_a_rotated_token_ends_after_the_overlap(self, served: ReceiverProcess) -> None:
        first = served.run("token", "create", "--scope", "viewer")
        token, number = first.stdout.strip(), token_id(first.stderr)
        second = served.run("token", "rotate", number, "--overlap", "1h")
        assert get(served, "/api/devices", token).status_code == 200
        assert get(served, "/api/devices", second.stdout.strip()).status_code == 200
        assert served.run("token", "rotate", number, "--overlap", "0s").returncode == 0
        assert get(served, "/api/devices", token).status_code == 401

    @pytest.mark.parametrize("act", ["revoke", "rotate"])
    def test_an_unknown_token_is_not_found(self, served: ReceiverProcess, act: str) -> None:
        done = served.run("token", act, "99999")
        assert (done.returncode, done.stdout) == (1, "")
        assert "99999" in done.stderr or "token" in done.stderr

    def test_a_secret_where_an_id_belongs_is_not_repeated(self, served: ReceiverProcess) -> None:
        token = served.admin_token()
        done = served.run("token", "revoke", token)
        assert done.returncode == 2
        assert token not in done.stderr + served.log()

    def test_a_token_made_while_no_receiver_runs_works_later(self, idle: ReceiverProcess) -> None:
        token = idle.make_database().admin_token()
        with idle:
            assert get(idle, "/api/devices", token).status_code == 200


class TestReach:
    """The receiver through its socket, over the network, or in the command's own process."""

    def test_over_the_network_with_a_token(self, served: ReceiverProcess, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(served.admin_token() + "\n")
        flags = ("--url", served.url, "--token-file", str(file))
        assert served.json("devices", *flags) == served.json("devices")
        assert served.run("token", "create", "--scope", "viewer", *flags).stdout.startswith("psv_")

    def test_a_token_without_the_right_is_refused(self, served: ReceiverProcess, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(served.admin_token("viewer"))
        done = served.run("token", "list", "--url", served.url, "--token-file", str(file))
        assert (done.returncode, done.stdout) == (1, "")
        assert "this call is for" in done.stderr

    def test_a_receiver_that_is_not_there_is_one_line(self, served: ReceiverProcess, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text("psa_x")
        done = served.run("devices", "--url", "http://127.0.0.1:9", "--token-file", str(file))
        assert (done.returncode, done.stdout) == (1, "")
        assert "no answer from http://127.0.0.1:9" in done.stderr
        assert len(done.stderr.splitlines()) == 1

    @pytest.mark.parametrize("text", [None, "", "two words", "é"])
    def test_a_token_file_that_holds_no_token_is_wrong_usage(
        self, served: ReceiverProcess, tmp_path: Path, text: str | None
    ) -> None:
        file = tmp_path / "token"
        if text is not None:
            file.write_text(text)
        done = served.run("devices", "--url", served.url, "--token-file", str(file))
        assert (done.returncode, done.stdout) == (2, "")
        assert "token_file" in done.stderr

    def test_a_socket_in_a_folder_with_a_long_path(self, tmp_path: Path) -> None:
        with ReceiverProcess(tmp_path / ("deep" * 30)) as receiver:
            assert receiver.admin_token().startswith("psa_")

    def test_a_chosen_socket(self, tmp_path: Path) -> None:
        place = {"PISYNC_RECEIVER_SOCKET": str(tmp_path / "here")}
        with ReceiverProcess(tmp_path / "receiver", environ=place) as receiver:
            assert (tmp_path / "here").is_socket()
            assert receiver.admin_token().startswith("psa_")

    def test_a_command_without_the_libraries_is_one_line(self, idle: ReceiverProcess) -> None:
        without = (
            "import sys; sys.modules['msgspec'] = None; from pisync_receiver.__main__ import main; sys.exit(main())"
        )
        done = subprocess.run([sys.executable, "-c", without, "devices"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "msgspec is missing" in done.stderr
        assert "pip install" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


class TestDevice:
    @pytest.fixture
    def device(self, served: ReceiverProcess) -> Iterator[str]:
        name = f"pibook-{served.enrollment_code()[:4]}"
        with MadeUpDevice(served.url, served.enrollment_code("--site", "Nakuru"), device_id=name) as made:
            made.post_batch(made.events(3))
            yield name

    def test_move_rename_and_show(self, served: ReceiverProcess, device: str) -> None:
        assert "Kisumu" in served.command("device", "move", device, "Kisumu")
        assert "shelf" in served.command("device", "rename", device, "left shelf")
        shown = served.json("device", "show", device)
        assert (shown["site"], shown["label"]) == ("Kisumu", "left shelf")
        assert "left shelf" in served.command("device", "show", device)
        assert {row["site"] for row in served.json("events", "--device-id", device)} == {"Nakuru"}

    def test_retire_and_bring_back(self, served: ReceiverProcess, device: str) -> None:
        assert "retired" in served.command("device", "retire", device)
        assert served.json("device", "show", device)["retired_at"] is not None
        assert "enroll again" in served.command("device", "retire", device, "--undo")
        assert served.json("device", "show", device)["retired_at"] is None

    def test_completeness(self, served: ReceiverProcess, device: str) -> None:
        assert served.json("completeness", device)["complete"] is True
        assert served.command("completeness", device).splitlines()[1].split()[1:5] == ["yes", "3", "3", "3"]

    def test_retention_tells_what_there_is(self, served: ReceiverProcess, device: str) -> None:
        assert "would be deleted: 0 events" in served.command("retain", "--older-than", "30d", "--dry-run")
        assert "deleted: 0 events" in served.command("retain", "--older-than", "30d")
        assert "deleted: 0 events" in served.command("retain", "--older-than", "30d", "--type", "video.watched")

    def test_too_short_an_age_is_refused_in_the_words_of_the_flag(self, served: ReceiverProcess) -> None:
        done = served.run("retain", "--older-than", "23h")
        assert "--older-than '23h': too short; the shortest is 1d" in done.stderr

    def test_a_code_for_one_device_says_so(self, served: ReceiverProcess) -> None:
        assert "good for 1 device until" in served.run("enrollment", "create", "--uses", "1").stderr
        assert "good for 30 devices until" in served.run("enrollment", "create", "--uses", "30").stderr

    def test_an_enrollment_code_is_listed_and_ended(self, served: ReceiverProcess) -> None:
        made = served.run("enrollment", "create", "--label", "class 5")
        rows = {row["label"]: row for row in served.json("enrollment", "list")}
        number = str(rows["class 5"]["id"])
        assert number in made.stderr
        assert number in served.command("enrollment", "end", number)
        with pytest.raises(AssertionError, match="enrollment_code"):
            MadeUpDevice(served.url, made.stdout.strip())


class TestEnrollment:
    def test_a_code_is_printed_alone_and_enrolls(self, served: ReceiverProcess) -> None:
        made = served.run("enrollment", "create", "--site", "Nakuru Primary")
        assert CODE.fullmatch(made.stdout)
        with MadeUpDevice(served.url, made.stdout.strip(), device_id="pibook-site"):
            pass
        sites = {row["device_id"]: row["site"] for row in served.json("devices")}
        assert sites["pibook-site"] == "Nakuru Primary"

    def test_a_code_counts_down(self, served: ReceiverProcess) -> None:
        code = served.enrollment_code("--uses", "2")
        for _ in range(2):
            MadeUpDevice(served.url, code).close()
        with pytest.raises(AssertionError, match="enrollment_code"):
            MadeUpDevice(served.url, code)

    def test_a_code_may_be_typed_carelessly(self, served: ReceiverProcess) -> None:
        code = served.enrollment_code()
        MadeUpDevice(served.url, " " + code.lower().replace("-", " ")).close()

    def test_a_taken_id_needs_a_code_made_for_it(self, served: ReceiverProcess) -> None:
        MadeUpDevice(served.url, served.enrollment_code(), device_id="pibook-taken").close()
        with pytest.raises(AssertionError, match="device_id_taken"):
            MadeUpDevice(served.url, served.enrollment_code(), device_id="pibook-taken")
        consent = served.enrollment_code("--device-id", "pibook-taken")
        MadeUpDevice(served.url, consent, device_id="pibook-taken").close()

    def test_a_code_that_has_expired_is_refused(self, served: ReceiverProcess) -> None:
        code = served.enrollment_code("--expires", "0s")
        with pytest.raises(AssertionError, match="enrollment_code"):
            MadeUpDevice(served.url, code)


class TestQuestions:
    @pytest.mark.parametrize(
        ("command", "path"),
        [
            (("devices",), "/api/devices"),
            (("devices", "--site", "Nakuru", "--limit", "1"), "/api/devices?site=Nakuru&limit=1"),
            (("devices", "--silent-for", "3d"), "/api/devices?silent_for=3d"),
            (("devices", "--state", "failing", "--sort", "failures"), "/api/devices?state=failing&sort=failures"),
            (("sites", "--sort", "site"), "/api/sites?sort=site"),
            (("site", "show", "Nakuru"), "/api/sites/Nakuru"),
            (("incomplete",), "/api/incomplete"),
            (("history", "ill"), "/api/sync-event/device/ill/sync-history"),
            (
                ("history", "ill", "--since", "2026-11-23T10:02:00Z", "--failed", "true", "--limit", "2"),
                "/api/sync-event/device/ill/sync-history?since=2026-11-23T10:02:00Z&failed=true&limit=2",
            ),
            (("failures",), "/api/sync-event/devices/repeated-failures"),
            (
                ("failures", "--mode", "total", "--min-failures", "5"),
                "/api/sync-event/devices/repeated-failures?mode=total&min_failures=5",
            ),
        ],
    )
    def test_the_same_answer_as_the_api(self, filled: ReceiverProcess, command: tuple[str, ...], path: str) -> None:
        answer = get(filled, path, filled.admin_token())
        assert answer.status_code == 200
        assert filled.json(*command) == answer.json()

    def test_a_table_for_people(self, filled: ReceiverProcess) -> None:
        head, row = filled.command("failures").splitlines()
        assert head.split()[:2] == ["device", "id"]
        assert row.split()[:3] == ["ill", "Nakuru", "5"]
        assert "tls=" in row
        assert "well" in filled.command("devices")
        assert len(filled.command("history", "well").splitlines()) == 6
        assert "1 failing" in filled.command("overview")
        assert "tls=1" in filled.command("sites")
        assert "Nakuru" in filled.command("site", "show", "Nakuru")

    def test_a_site_has_a_time_of_its_own_until_it_is_off(self, filled: ReceiverProcess) -> None:
        assert "after 60d" in filled.command("site", "set-silent-after", "Nakuru", "60d")
        assert filled.json("site", "show", "Nakuru")["silent_after_s"] == 60 * 86_400
        assert "the receiver's setting" in filled.command("site", "set-silent-after", "Nakuru", "off")
        assert filled.json("site", "show", "Nakuru")["silent_after_s"] is None
        assert "length of time" in filled.run("site", "set-silent-after", "Nakuru", "soon").stderr
        assert "unknown site 'Nowhere'" in filled.run("site", "show", "Nowhere").stderr

    def test_pages_are_named_and_followed(self, filled: ReceiverProcess) -> None:
        done = filled.run("history", "ill", "--limit", "2", "--json")
        cursor = re.search(r"--cursor (\S+)", done.stderr)
        assert cursor
        following = filled.json("history", "ill", "--limit", "2", "--cursor", cursor[1])
        everything = filled.json("history", "ill", "--limit", "2", "--all")
        assert everything == filled.json("history", "ill")
        assert json.loads(done.stdout) + following == everything[:4]

    def test_nothing_is_said_on_standard_error_alone(self, filled: ReceiverProcess) -> None:
        done = filled.run("failures", "--min-failures", "100")
        assert (done.returncode, done.stdout) == (0, "")
        assert filled.json("failures", "--min-failures", "100") == []

    def test_an_unknown_device(self, filled: ReceiverProcess) -> None:
        done = filled.run("history", "unknown")
        assert (done.returncode, done.stdout) == (1, "")
        assert "unknown device 'unknown'" in done.stderr

    def test_they_are_answered_while_nothing_serves(self, filled: ReceiverProcess, tmp_path: Path) -> None:
        copy = ReceiverProcess(tmp_path)
        filled.command("backup", str(copy.database))
        assert copy.json("failures") == filled.json("failures")

    def test_a_reader_that_stops_reading_is_no_error_to_print(self, filled: ReceiverProcess) -> None:
        done = subprocess.run(
            ["sh", "-c", f"{shlex.join(filled.program)} history ill --json | true"],
            env=filled.environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        assert "Error" not in done.stderr


class TestBackup:
    def test_a_backup_while_it_serves_is_whole_and_opens(self, idle: ReceiverProcess, tmp_path: Path) -> None:
        copy = ReceiverProcess(tmp_path / "copy")
        with idle, MadeUpDevice(idle.url, idle.enrollment_code(), device_id="pibook-1") as device:
            assert device.post_batch(device.events(500)).json()["stored"] == 500
            said = idle.command("backup", str(copy.database))
            assert str(copy.database) in said
            assert device.post_batch(device.events(5)).json()["watermark"] == 505
        assert stat.S_IMODE(copy.database.stat().st_mode) == 0o600
        connection = sqlite3.connect(copy.database)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        with copy:
            answer = get(copy, "/api/devices/pibook-1/completeness", copy.admin_token())
            assert answer.json()["streams"][0]["watermark"] == 500

    def test_a_file_that_is_there_is_left_alone(self, served: ReceiverProcess, tmp_path: Path) -> None:
        there = tmp_path / "precious"
        there.write_text("precious")
        done = served.run("backup", str(there))
        assert done.returncode == 1
        assert "left as it is" in done.stderr
        assert there.read_text() == "precious"

    def test_a_folder_that_is_not_there(self, served: ReceiverProcess, tmp_path: Path) -> None:
        done = served.run("backup", str(tmp_path / "nowhere" / "x.db"))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


class TestSchema:
    def change(self, receiver: ReceiverProcess, sql: str) -> None:
        connection = sqlite3.connect(receiver.database, isolation_level=None)
        connection.execute(sql)
        connection.close()

    def test_a_newer_schema_is_refused(self, idle: ReceiverProcess) -> None:
        idle.make_database()
        self.change(idle, "INSERT INTO migrations SELECT max(number) + 1, 'later', 'x', 0 FROM migrations")
        for command in (("serve", "--port", "0"), ("devices",), ("migrate",), ("token", "create", "--role", "admin")):
            done = idle.run(*command)
            assert (done.returncode, done.stdout) == (1, ""), command
            assert "newer than this program" in done.stderr
            assert "Traceback" not in done.stderr

    def test_an_older_schema_is_refused_and_says_what_to_run(self, idle: ReceiverProcess) -> None:
        idle.make_database()
        self.change(idle, "DELETE FROM migrations WHERE number = (SELECT max(number) FROM migrations)")
        for command in (("serve", "--port", "0"), ("devices",), ("token", "create", "--role", "admin")):
            done = idle.run(*command)
            assert (done.returncode, done.stdout) == (1, ""), command
            assert "pisync-receiver migrate" in done.stderr

    def test_migrate_says_that_there_is_nothing_to_do(self, idle: ReceiverProcess) -> None:
        idle.make_database()
        assert "nothing to do" in idle.command("migrate")

    def test_migrate_while_it_serves_is_refused(self, served: ReceiverProcess) -> None:
        done = served.run("migrate")
        assert done.returncode == 1
        assert "in use by pisync-receiver serve" in done.stderr

    def test_a_file_that_is_no_database_is_refused_and_kept(self, idle: ReceiverProcess) -> None:
        idle.database.write_bytes(b"a letter to my mother " * 500)
        for command in (("serve", "--port", "0"), ("devices",), ("token", "create", "--role", "admin")):
            done = idle.run(*command)
            assert done.returncode == 1, command
            assert "Traceback" not in done.stderr
        assert idle.database.read_bytes() == b"a letter to my mother " * 500


class TestConfig:
    def test_each_value_and_where_it_came_from(self, idle: ReceiverProcess, tmp_path: Path) -> None:
        file = tmp_path / "receiver.toml"
        file.write_text("idle_timeout = '2m'\n")
        rows = {row["name"]: row for row in idle.json("config", "--port", "9", "--config", str(file))}
        assert rows["port"] == {"name": "port", "value": "9", "source": "flag --port"}
        assert rows["idle_timeout"]["source"] == f"file {file}"
        assert rows["database_url"]["source"] == "variable PISYNC_RECEIVER_DATABASE_URL"
        assert rows["host"]["source"] == "default"
        assert "idle_timeout" in idle.command("config").replace(" ", "_")

    def test_a_mistyped_key_is_refused(self, idle: ReceiverProcess, tmp_path: Path) -> None:
        file = tmp_path / "receiver.toml"
        file.write_text("idle_timeut = '2m'\n")
        done = idle.run("config", "--config", str(file))
        assert done.returncode == 2
        assert "did you mean idle_timeout?" in done.stderr


WRONG = [
    ("serve", "extra"),
    ("serve", "--port", "seventy"),
    ("serve", "--log-level", "loud"),
    ("token",),
    ("token", "create"),
    ("token", "create", "--scope", "device"),
    ("token", "create", "--scope", "admin", "--overlap", "1h"),
    ("token", "create", "--scope", "viewer", "--expires", "soon"),
    ("token", "rotate", "1", "--overlap", "soon"),
    ("token", "list", "--all"),
    ("token", "list", "--scope", "king"),
    ("token", "revoke"),
    ("device", "move", "pibook-1"),
    ("retain",),
    ("retain", "--older-than", "1h"),
    ("devices", "--url", "http://127.0.0.1:9"),
    ("devices", "--url", "pisync.example"),
    ("enrollment",),
    ("enrollment", "create", "--uses", "0"),
    ("enrollment", "create", "--expires", "later"),
    ("enrollment", "create", "--expires", "999999999d"),
    ("enrollment", "create", "--site", ""),
    ("enrollment", "create", "--device-id", "a b"),
    ("devices", "--silent-for", "long"),
    ("devices", "--limit", "0"),
    ("history",),
    ("history", "pibook-1", "--failed", "perhaps"),
    ("failures", "--mode", "some"),
    ("failures", "--min-failures", "none"),
    ("backup",),
    ("migrate", "now"),
    ("config", "--port", "-1"),
    ("config", "--config", "/nowhere.toml"),
    ("devices", "--database-url", "receiver.db"),
    (),
    ("dance",),
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_usage_ends_with_2_and_says_so_on_standard_error(
    served: ReceiverProcess, arguments: tuple[str, ...]
) -> None:
    done = served.run(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("devices",), ("history", "x"), ("failures",), ("token", "list"), ("migrate",)])
def test_without_a_database_nothing_is_made(idle: ReceiverProcess, command: tuple[str, ...]) -> None:
    done = idle.run(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no database at" in done.stderr
    assert not idle.database.exists()
