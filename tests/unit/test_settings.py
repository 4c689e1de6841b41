"""Settings: which source wins, what is refused and how it is said, and that secrets stay masked."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from platformdirs import user_data_dir

from pisync_common.errors import PiSyncError, SettingError
from pisync_common.settings import (
    Setting,
    Settings,
    add_flags,
    boolean,
    choice,
    document,
    duration,
    find_file,
    flags_of,
    integer,
    load,
    mask_url,
    optional,
    path,
    size,
    some_time,
    text,
    users_folder,
)

PORT = Setting(name="port", default="8080", parse=integer(0, 65535), help="the port", metavar="N")
ROOM = Setting(name="max_queue", default="256MiB", parse=size, help="100% of the room")
KEY = Setting(name="key", default="", parse=text, help="a secret", secret=True, flag=False)
URL = Setting(name="database_url", default="", parse=optional(text), help="where it is stored")
HOME = Setting(name="home", default=lambda: "/made/up", parse=path, help="the folder", default_shown="where it belongs")
TABLE: list[Setting[Any]] = [PORT, ROOM, KEY, URL, HOME]


def loaded(
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str | None] | None = None,
    toml_file: Path | None = None,
) -> Settings:
    return load(TABLE, prefix="PISYNC_TEST_", environ=environ or {}, flags=flags or {}, toml_file=toml_file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pisync.toml"


class TestSources:
    def test_defaults_are_parsed_like_anything_else(self) -> None:
        settings = loaded()
        assert settings[PORT] == 8080
        assert settings[ROOM] == 256 * 1024 * 1024
        assert settings[URL] is None
        assert settings[HOME] == Path("/made/up")
        assert settings.source(PORT) == "default"

    def test_each_source_wins_over_the_next(self, file: Path) -> None:
        file.write_text("port = 1\n")
        assert loaded(toml_file=file)[PORT] == 1
        assert loaded(toml_file=file, environ={"PISYNC_TEST_PORT": "2"})[PORT] == 2
        assert loaded(toml_file=file, environ={"PISYNC_TEST_PORT": "2"}, flags={"port": "3"})[PORT] == 3

    def test_a_value_remembers_where_it_came_from(self, file: Path) -> None:
        file.write_text("port = 1\n")
        settings = loaded(toml_file=file, environ={"PISYNC_TEST_MAX_QUEUE": "1KiB"}, flags={"home": "/x"})
        assert settings.source(PORT) == f"file {file}"
        assert settings.source(ROOM) == "variable PISYNC_TEST_MAX_QUEUE"
        assert settings.source(HOME) == "flag --home"

    def test_an_empty_variable_is_not_set_but_an_empty_flag_is(self) -> None:
        assert loaded(environ={"PISYNC_TEST_PORT": ""})[PORT] == 8080
        with pytest.raises(SettingError, match="flag --port"):
            loaded(flags={"port": ""})

    @pytest.mark.parametrize(
        ("line", "expected"), [("max_queue = 5", 5), ('max_queue = "5KiB"', 5120), ("max_queue = 1.0", 1)]
    )
    def test_toml_values_may_be_numbers_or_texts(self, file: Path, line: str, expected: int) -> None:
        file.write_text(line)
        assert loaded(toml_file=file)[ROOM] == expected

    def test_toml_booleans_are_booleans(self, file: Path) -> None:
        file.write_text("auth = false")
        auth = Setting(name="auth", default="on", parse=boolean, help="who may")
        assert load([auth], prefix="X_", environ={}, flags={}, toml_file=file)[auth] is False


class TestRefusals:
    def test_the_error_names_setting_value_and_source(self) -> None:
        with pytest.raises(SettingError) as caught:
            loaded(environ={"PISYNC_TEST_MAX_QUEUE": "12 apples"})
        assert str(caught.value) == (
            "max_queue = '12 apples' (variable PISYNC_TEST_MAX_QUEUE): not a size, such as 256MiB or 64KiB"
        )
        assert isinstance(caught.value, PiSyncError)

    def test_an_unknown_key_is_refused_with_the_nearest_name(self, file: Path) -> None:
        file.write_text("max_quue = 5")
        with pytest.raises(SettingError, match=rf"max_quue \(file {file}\).*did you mean max_queue\?"):
            loaded(toml_file=file)

    def test_an_unknown_key_near_nothing_is_refused_without_a_guess(self, file: Path) -> None:
        file.write_text("zzzzzz = 5")
        with pytest.raises(SettingError, match=r"no such setting$"):
            loaded(toml_file=file)

    @pytest.mark.parametrize("content", ["port = [1]", "[port]\na = 1", "port = 2026-01-01", "port =", "\udcff"])
    def test_what_is_no_flat_toml_is_refused_with_the_file_named(self, file: Path, content: str) -> None:
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(SettingError, match=str(file)):
            loaded(toml_file=file)

    @pytest.mark.parametrize(
        "content",
        [
            "port = 1".encode("utf-16"), b"port = 0x" + b"f" * 9000, b"port = " + b"[" * 5000, b"host = '\xe9'",
            b"port = 1" + b" " * 2**20 + b"=",
        ],
    )  # fmt: skip
    def test_other_content_is_refused_with_the_file_named(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        with pytest.raises(SettingError, match=str(file)):
            loaded(toml_file=file)

    def test_a_byte_order_mark_is_read_over(self, file: Path) -> None:
        file.write_bytes(b"\xef\xbb\xbfport = 1\r\n")
        assert loaded(toml_file=file)[PORT] == 1

    def test_a_file_that_cannot_be_read_is_never_left_out(self, tmp_path: Path) -> None:
        """A folder in the place of the system's file, or a link to nowhere: its settings may be what counts."""
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        for place in (tmp_path, tmp_path / "link"):
            found = find_file(None, prefix="P_", environ={}, default=place)
            assert found == place
            with pytest.raises(SettingError, match=rf"file {place} cannot be read"):
                loaded(toml_file=found)

    def test_a_secret_is_not_repeated_in_an_error(self) -> None:
        pin = Setting(name="pin", default="1", parse=integer(0), help="secret", secret=True)
        with pytest.raises(SettingError) as caught:
            load([pin], prefix="X_", environ={"X_PIN": "hunter2"}, flags={}, toml_file=None)
        assert "hunter2" not in str(caught.value)

    def test_the_file_that_was_named_must_be_there(self, file: Path) -> None:
        def found(flag: str | None = None, variable: str = "", default: Path | None = None) -> Path | None:
            return find_file(flag, prefix="P_", environ={"P_CONFIG": variable}, default=default)

        assert found(default=file) is None
        with pytest.raises(SettingError, match="flag --config"):
            found(str(file))
        with pytest.raises(SettingError, match="variable P_CONFIG"):
            found(variable=str(file))
        file.touch()
        assert found(str(file), "/nowhere") == found(variable=str(file)) == found(default=file) == file


class TestMasking:
    def test_describe_masks_secrets_and_passwords_in_urls(self) -> None:
        settings = loaded(
            environ={"PISYNC_TEST_KEY": "hunter2", "PISYNC_TEST_DATABASE_URL": "postgresql://ann:hunter2@db/x"}
        )
        rows = {row.name: row for row in settings.describe()}
        assert rows["key"].value == "********"
        assert rows["database_url"].value == "postgresql://ann:********@db/x"
        assert rows["key"].source == "variable PISYNC_TEST_KEY"
        assert "hunter2" not in repr(settings)

    def test_an_empty_secret_looks_empty(self) -> None:
        assert {row.name: row.value for row in loaded().describe()}["key"] == ""

    def test_rows_keep_the_tables_order(self) -> None:
        assert [row.name for row in loaded().describe()] == [setting.name for setting in TABLE]

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://a:p@ss:w@host:80/x", "https://a:********@host:80/x"),
            ("https://:secret@host", "https://:********@host"),
            ("https://host:80/a@b", "https://host:80/a@b"),
            ("postgresql:///x?user=a&password=b&x=1", "postgresql:///x?user=a&password=********&x=1"),
            ("sqlite:////var/lib/x.db", "sqlite:////var/lib/x.db"),
        ],
    )
    def test_mask_url(self, url: str, shown: str) -> None:
        assert mask_url(url) == shown


class TestFlagsAndDocuments:
    def parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog="pisync")
        add_flags(parser, TABLE, prefix="PISYNC_TEST_")
        return parser

    def test_flags_come_from_the_table(self) -> None:
        arguments = self.parser().parse_args(["--port", "1", "--max-queue", "2MiB"])
        settings = loaded(flags=flags_of(arguments, TABLE))
        assert (settings[PORT], settings[ROOM]) == (1, 2 * 1024 * 1024)
        assert settings.source(HOME) == "default"

    def test_a_setting_without_a_flag_has_none(self) -> None:
        assert "--key" not in self.parser().format_help()

    def test_help_names_default_and_variable_and_may_hold_a_percent_sign(self) -> None:
        shown = " ".join(self.parser().format_help().split())
        assert "100% of the room (default: 256MiB; PISYNC_TEST_MAX_QUEUE)" in shown
        assert "(default: where it belongs; PISYNC_TEST_HOME)" in shown

    def test_the_document_has_a_row_for_each_setting(self) -> None:
        rows = document(TABLE, prefix="PISYNC_TEST_").splitlines()[2:]
        assert len(rows) == len(TABLE)
        assert rows[0] == "| `port` | `--port` | `PISYNC_TEST_PORT` | `8080` | the port |"


class TestParsers:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [("90s", 90), ("15m", 900), ("1h30m", 5400), ("7d", 604800), ("2w", 1209600), ("1.5h", 5400), ("5", 5),
         ("250ms", 0.25), ("0s", 0)],
    )  # fmt: skip
    def test_durations(self, value: str, seconds: float) -> None:
        assert duration(value) == seconds

    @pytest.mark.parametrize("value", ["", "d", "7 days", "-5s", "5x", "1e9", "٣s", "nan", "9" * 400 + "d"])
    def test_invalid_durations_are_rejected(self, value: str) -> None:
        with pytest.raises(ValueError, match="not a length of time"):
            duration(value)

    def test_some_time_rejects_zero(self) -> None:
        assert some_time("250ms") == 0.25
        for value in ("0s", "0", "0ms"):
            with pytest.raises(ValueError, match="longer than 0s"):
                some_time(value)

    @pytest.mark.parametrize(
        ("value", "number"),
        [("256MiB", 2**28), ("64 KiB", 65536), ("1GiB", 2**30), ("1gib", 2**30), ("5MB", 5 * 10**6), ("10", 10),
         ("1.5KiB", 1536), ("2M", 2**21)],
    )  # fmt: skip
    def test_sizes(self, value: str, number: int) -> None:
        assert size(value) == number

    @pytest.mark.parametrize("value", ["", "MiB", "-1", "1TB", "1 000", "9" * 400])
    def test_invalid_sizes_are_rejected(self, value: str) -> None:
        with pytest.raises(ValueError, match="not a size"):
            size(value)

    @pytest.mark.parametrize("value", ["on", "ON", "true", "yes", "1"])
    def test_on(self, value: str) -> None:
        assert boolean(value) is True

    @pytest.mark.parametrize("value", ["off", "False", "no", "0"])
    def test_off(self, value: str) -> None:
        assert boolean(value) is False

    @pytest.mark.parametrize("value", ["", "maybe", "2"])
    def test_other_values_are_not_booleans(self, value: str) -> None:
        with pytest.raises(ValueError, match="on or off"):
            boolean(value)

    @pytest.mark.parametrize("value", ["0", "65535", "+5"])
    def test_whole_numbers(self, value: str) -> None:
        assert integer(0, 65535)(value) == int(value)

    @pytest.mark.parametrize("value", ["-1", "65536", "1.5", "", "1_0", "٣", "9" * 5000])
    def test_invalid_integers_are_rejected(self, value: str) -> None:
        with pytest.raises(ValueError, match="not a whole number from 0 to 65535"):
            integer(0, 65535)(value)

    def test_choices_name_the_nearest(self) -> None:
        assert choice("debug", "info")("info") == "info"
        with pytest.raises(ValueError, match="debug, info; did you mean info"):
            choice("debug", "info")("infos")

    def test_paths_know_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/ann")
        assert path("~/x") == Path("/home/ann/x")
        for value in ("", "a\0b"):
            with pytest.raises(ValueError, match="not a path"):
                path(value)

    def test_paths_are_resolved_by_the_kernel_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Behind a link, `..` is not the folder that the link is in."""
        (tmp_path / "card/data").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "card/data")
        monkeypatch.chdir(tmp_path)
        assert path("link/../x").parent.samefile(tmp_path / "card")

    def test_a_path_may_have_bytes_that_are_not_text(self) -> None:
        assert os.fsencode(path("/srv/donn\udce9es")) == b"/srv/donn\xe9es"

    @pytest.mark.parametrize("value", ["~no-such-user/x", "/srv/\ud800", "/srv/\U000dc800\udfff\ud800"])
    def test_a_path_that_cannot_be_is_refused(self, value: str) -> None:
        with pytest.raises(ValueError, match=r"write the whole path|cannot encode"):
            path(value)

    def test_a_removed_current_folder_is_refused_for_relative_paths_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert path("/x") == Path("/x")
        with pytest.raises(ValueError, match="write the whole path"):
            path("x")

    @pytest.mark.parametrize("value", ["3651d", "100000w", "9999999999", "999999999999999w", "3650d1ms"])
    def test_times_beyond_every_timer_are_refused(self, value: str) -> None:
        assert duration("3650d") == 3650 * 86400
        with pytest.raises(ValueError, match="the longest is 3650d"):
            duration(value)

    @pytest.mark.parametrize("value", ["1048577GiB", "999999999999999GiB", "999999999999999m"])
    def test_sizes_beyond_every_disk_are_refused(self, value: str) -> None:
        assert size("1048576GiB") == 2**50
        with pytest.raises(ValueError, match="the largest is 1048576GiB"):
            size(value)

    def test_a_user_without_a_home_folder_must_name_a_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def find() -> str:
            return user_data_dir("x")

        room = Setting(name="room", default=lambda: users_folder(find), parse=path, help="where")
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        monkeypatch.setenv("HOME", "/home/ann")
        assert users_folder(find) == "/home/ann/.local/share/x"

        def unknown(uid: int) -> None:
            raise KeyError(uid)

        monkeypatch.setattr("pwd.getpwuid", unknown)
        for home in (None, ""):
            monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
            with pytest.raises(SettingError, match=r"room has no default here: .* --room or X_ROOM"):
                load([room], prefix="X_", environ={}, flags={}, toml_file=None)

    @given(value=st.text(max_size=40))
    def test_any_text_is_parsed_or_refused_as_a_setting_error(self, value: str) -> None:
        for setting in (PORT, ROOM):
            try:
                loaded(flags={setting.name: value})
            except SettingError:
                continue
