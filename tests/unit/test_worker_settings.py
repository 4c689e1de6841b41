"""The worker's settings: understood, or refused by name; secrets stay secret."""

import argparse

import pytest

from pisync_common.errors import SettingError
from pisync_common.settings import MASK, Settings, add_flags
from pisync_receiver import config
from pisync_receiver.worker import settings as own


def settings(*flags: str, **environ: str) -> Settings:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    add_flags(parser, config.SETTINGS, prefix=config.PREFIX)
    return config.settings_from(parser.parse_args(flags), environ)


def test_by_default_nothing_is_handed_on_and_nobody_is_told() -> None:
    chosen = settings()
    assert chosen[own.AMQP_URL] is None
    assert chosen[own.ALERT_URLS] == ()
    assert chosen[own.QUIET_HOURS] is None
    assert chosen[own.METRICS_ADDRESS] is None


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        ("", ()),
        ("  ", ()),
        ("json://h/a", ("json://h/a",)),
        ("json://h/a, tgram://t/c", ("json://h/a", "tgram://t/c")),
        ("json://h/a tgram://t/c,slack://x", ("json://h/a", "tgram://t/c", "slack://x")),
        ("mailto://u:p@h?to=a@x.org,b@x.org,json://h", ("mailto://u:p@h?to=a@x.org,b@x.org", "json://h")),
    ],
)
def test_alert_urls_stand_between_commas(value: str, urls: tuple[str, ...]) -> None:
    assert settings(PISYNC_RECEIVER_ALERT_URLS=value)[own.ALERT_URLS] == urls


def test_secrets_are_masked() -> None:
    chosen = settings(
        PISYNC_RECEIVER_ALERT_URLS="tgram://hunter2/c", PISYNC_RECEIVER_AMQP_URL="amqps://ann:hunter2@rabbit/"
    )
    shown = {row.name: row.value for row in chosen.describe()}
    assert shown["alert_urls"] == MASK
    assert shown["amqp_url"] == f"amqps://ann:{MASK}@rabbit/"
    assert "hunter2" not in repr(chosen)


def test_alert_urls_are_no_flag_because_everybody_reads_those() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, own.WORKING, prefix=config.PREFIX)
    assert "--alert-urls" not in parser.format_help()
    assert "--amqp-queue" in parser.format_help()


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("AMQP_URL", "http://x", "not the address of a RabbitMQ"),
        ("AMQP_EXCHANGE", "two words", "not 1 to 200 letters"),
        ("AMQP_QUEUE_TYPE", "mirrored", "not one of quorum"),
        ("ALERT_URLS", "ops@example.org", "not Apprise URLs"),
        ("QUIET_HOURS", "at night", "not two times of day"),
        ("TIME_ZONE", "Nairobi", "not a time zone"),
        ("METRICS_ADDRESS", "9180", "not an address and a port"),
        ("METRICS_ADDRESS", "127.0.0.1:99999", "not an address and a port"),
        ("MESSAGE_EVENTS", "0", "not a whole number"),
    ],
)
def test_what_is_refused(variable: str, value: str, text: str) -> None:
    with pytest.raises(SettingError, match=text):
        settings(**{f"PISYNC_RECEIVER_{variable}": value})


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [("127.0.0.1:9180", "127.0.0.1", 9180), ("[::1]:80", "::1", 80), ("metrics:1", "metrics", 1)],
)
def test_an_address(value: str, host: str, port: int) -> None:
    assert own.address(value) == own.Address(host=host, port=port)


def test_serve_takes_none_of_them() -> None:
    assert not set(own.WORKING) & set(config.SERVING)
    assert set(own.WORKING) | set(config.SERVING) == set(config.SETTINGS)
