"""The receiver's settings: each is understood or refused by name, and no door opens by accident."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as fuzz_settings
from hypothesis import strategies as st

from pisync_common.errors import SettingError
from pisync_common.settings import Setting, Settings, add_flags, document
from pisync_receiver import config
from pisync_receiver.store.address import PostgresUrl

HOSTS = ("\udcff", "x..y", "a" * 300, "a\0b", "a/b", " a")
"""What no socket can take."""


def settings(*flags: str, **environ: str) -> Settings:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    add_flags(parser, config.SETTINGS, prefix=config.PREFIX)
    return config.settings_from(parser.parse_args(flags), environ)


def test_the_defaults_work() -> None:
    chosen = settings()
    config.check_serving(chosen)
    assert chosen[config.HOST] == "127.0.0.1"
    assert chosen[config.PORT] == 8080
    assert chosen[config.AUTH] is True
    assert str(chosen[config.DATABASE]).endswith("/receiver.db")


@fuzz_settings(max_examples=200)
@given(
    setting=st.sampled_from(config.SETTINGS),
    value=st.one_of(
        st.text(max_size=60),
        st.text(st.characters(categories=["Cs"]) | st.sampled_from("~/.:,@[]%?#0\0\n é"), max_size=20),
        st.builds(
            "{}{}{}".format,
            st.sampled_from(
                ["", "~", "~x/", "sqlite:///", "postgresql://", "http://", "redis://", "amqp://", "-", "9" * 400]
            ),
            st.text(max_size=20),
            st.sampled_from(["", "w", "GiB", "/", ":99999", "%zz", "]", "\0", "\udcff"]),
        ),
    ),
)
def test_any_value_is_taken_or_refused_as_a_setting_error(setting: Setting[Any], value: str) -> None:
    with contextlib.suppress(SettingError):
        config.settings_from(argparse.Namespace(**{setting.name: value}), {"HOME": "/home/ann"})


@pytest.mark.parametrize("setting", config.SETTINGS, ids=lambda setting: setting.name)
def test_every_time_and_size_is_bounded(setting: Setting[Any]) -> None:
    huge = {"TIME": "100000w", "SIZE": "999999999999999GiB"}.get(setting.metavar or "")
    if huge is not None:
        with pytest.raises(ValueError, match=r"longest|largest"):
            setting.parse(huge)


class TestDatabaseUrl:
    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("sqlite:////var/lib/x.db", Path("/var/lib/x.db")),
            ("sqlite:///x.db", Path.cwd() / "x.db"),
            ("sqlite:////srv/a school/ü.db", Path("/srv/a school/ü.db")),
        ],
    )
    def test_a_file(self, url: str, path: Path) -> None:
        assert settings("--database-url", url)[config.DATABASE] == path

    @pytest.mark.parametrize(
        "url", ["", "x.db", "sqlite://x.db", "sqlite:///", "sqlite:///:memory:", "sqlite:///x?mode=ro", "mysql://x/y"]
    )
    def test_no_file(self, url: str) -> None:
        with pytest.raises(SettingError, match="not the address of a database"):
            settings("--database-url", url)

    def test_postgresql_is_named_and_its_password_is_not(self) -> None:
        chosen = settings(PISYNC_RECEIVER_DATABASE_URL="postgresql://ann:hunter2@db:5433/pisync")
        place = chosen[config.DATABASE]
        assert isinstance(place, PostgresUrl)
        assert str(place) == "postgresql://db:5433/pisync"
        assert "hunter2" not in repr((place, chosen))

    @pytest.mark.parametrize("url", ["postgresql://", "postgresql+psycopg://ann:hunter2@db/x", "postgresql://a b/c"])
    def test_no_postgresql(self, url: str) -> None:
        with pytest.raises(SettingError, match="not the address of a") as caught:
            settings(PISYNC_RECEIVER_DATABASE_URL=url)
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        ["redis://h", "redis://h:6379", "redis://u:secret@h/3", "rediss://h/0", "redis://[::1]/0", "unix:///run/r"],
    )
    def test_a_redis_is_named_and_its_password_is_not(self, url: str) -> None:
        there = settings("--redis-url", url)[config.REDIS]
        assert there is not None
        assert there.url == url
        assert "secret" not in f"{there} {there!r}"

    @pytest.mark.parametrize(
        "url",
        [
            "redis",
            "http://h",
            "redis://",
            "redis://h:x",
            "redis://h/x",
            "unix://",
            "redis://h\n",
            "redis://:hunter2@h/x",
        ],
    )
    def test_no_redis(self, url: str) -> None:
        with pytest.raises(SettingError, match="not the address of a Redis") as caught:
            settings("--redis-url", url)
        assert "hunter2" not in str(caught.value)

    def test_socket_is_beside_the_file(self) -> None:
        chosen = settings("--database-url", "sqlite:////srv/receiver.db")
        assert chosen[config.DATABASE] == Path("/srv/receiver.db")
        assert config.socket_path(chosen) == Path("/srv/receiver.db.sock")


class TestServing:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
    def test_auth_may_be_off_on_loopback(self, host: str) -> None:
        config.check_serving(settings("--auth", "off", "--host", host))

    @pytest.mark.parametrize(
        "host", ["0.0.0.0", "::", "192.168.1.4", "school.example", "localhost.example", "::ffff:10.0.0.1", "127.1"]
    )
    def test_auth_may_not_be_off_anywhere_else(self, host: str) -> None:
        with pytest.raises(SettingError, match="could read and write everything"):
            config.check_serving(settings("--auth", "off", "--host", host))
        config.check_serving(settings("--host", host))

    def test_the_socket_stands_beside_a_file_and_nowhere_for_postgresql(self) -> None:
        assert config.socket_path(settings("--database-url", "sqlite:////srv/r.db")) == Path("/srv/r.db.sock")
        assert config.socket_path(settings("--database-url", "postgresql://db/pisync")) is None
        assert config.socket_path(settings("--socket", "/run/x")) == Path("/run/x")

    @pytest.mark.parametrize("url", ["pisync.example", "ftp://x", "https://", "https://ann:hunter2@x"])
    def test_a_url_that_is_no_receivers_is_refused(self, url: str) -> None:
        with pytest.raises(SettingError, match="not the address of a receiver"):
            settings("--url", url)

    @pytest.mark.parametrize(
        "flags", [("--port", "65536"), ("--port", "x"), ("--host", ""), *(("--host", host) for host in HOSTS)]
    )
    def test_addresses_that_are_none(self, flags: tuple[str, str]) -> None:
        with pytest.raises(SettingError, match=f"flag {flags[0]}"):
            settings(*flags)

    def test_the_port_that_kubernetes_injects_is_explained(self) -> None:
        with pytest.raises(SettingError, match="enableServiceLinks"):
            settings(PISYNC_RECEIVER_PORT="tcp://10.0.0.7:8080")


class TestFile:
    def test_a_file_is_read(self, tmp_path: Path) -> None:
        file = tmp_path / "receiver.toml"
        file.write_text("port = 9000\nauth = false\n")
        chosen = settings("--config", str(file))
        assert (chosen[config.PORT], chosen[config.AUTH]) == (9000, False)
        assert settings(PISYNC_RECEIVER_CONFIG=str(file)).source(config.PORT) == f"file {file}"

    def test_a_file_that_was_named_and_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="no such file"):
            settings("--config", str(tmp_path / "receiver.toml"))


def test_every_setting_says_what_it_is_for_and_is_documented() -> None:
    names = [setting.name for setting in config.SETTINGS]
    assert len(set(names)) == len(names)
    rows = document(config.SETTINGS, prefix=config.PREFIX)
    for setting in config.SETTINGS:
        assert len(setting.help) > 10
        assert setting.metavar
        assert f"`{setting.variable(config.PREFIX)}`" in rows


def test_the_document_does_not_depend_on_the_machine() -> None:
    assert str(Path.home()) not in document(config.SETTINGS, prefix=config.PREFIX)
