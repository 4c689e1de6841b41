"""The settings of the worker and of alerts: parsed, or refused by name; secrets stay secret."""

import argparse

import pytest

from pisync_common.errors import SettingError
from pisync_common.settings import MASK, Settings, add_flags
from pisync_receiver import config


def settings(*flags: str, **environ: str) -> Settings:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    add_flags(parser, config.SETTINGS, prefix=config.PREFIX)
    return config.settings_from(parser.parse_args(flags), environ)


def test_by_default_nothing_is_published_and_no_alert_is_sent() -> None:
    chosen = settings()
    assert chosen[config.AMQP_URL] is None
    assert chosen[config.ALERT_URLS] == ()
    assert chosen[config.QUIET_HOURS] is None


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
def test_alert_urls_are_separated_by_commas_or_spaces(value: str, urls: tuple[str, ...]) -> None:
    assert settings(PISYNC_RECEIVER_ALERT_URLS=value)[config.ALERT_URLS] == urls


def test_secrets_are_masked() -> None:
    chosen = settings(
        PISYNC_RECEIVER_ALERT_URLS="tgram://hunter2/c", PISYNC_RECEIVER_AMQP_URL="amqps://ann:hunter2@rabbit/"
    )
    shown = {row.name: row.value for row in chosen.describe()}
    assert shown["alert_urls"] == MASK
    assert shown["amqp_url"] == f"amqps://ann:{MASK}@rabbit/"
    assert "hunter2" not in repr(chosen)


def test_alert_urls_are_no_flag_because_other_users_can_read_flags() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, config.SERVING, prefix=config.PREFIX)
    assert "--alert-urls" not in parser.format_help()
    assert "--quiet-hours" in parser.format_help()


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("AMQP_URL", "http://x", "not the address of a RabbitMQ"),
        ("AMQP_EXCHANGE", "two words", "not 1 to 200 letters"),
        ("MESSAGE_EVENTS", "0", "from 1 to 1,?000"),
        ("MESSAGE_EVENTS", "1001", "from 1 to 1,?000"),
        ("AMQP_QUEUE_TYPE", "mirrored", "not one of quorum"),
        ("ALERT_URLS", "ops@example.org", "not Apprise URLs"),
        ("QUIET_HOURS", "at night", "not two times of day"),
        ("TIME_ZONE", "Nairobi", "not a time zone"),
        ("DIGEST_HOUR", "24", "from 0 to 23"),
        ("PUBLIC_URL", "pisync.example", "not the address of a receiver"),
    ],
)
def test_an_invalid_value_is_refused(variable: str, value: str, text: str) -> None:
    with pytest.raises(SettingError, match=text):
        settings(**{f"PISYNC_RECEIVER_{variable}": value})


def test_serve_takes_the_settings_of_alerts_and_not_the_workers() -> None:
    assert {config.ALERT_URLS, config.QUIET_HOURS, config.TIME_ZONE, config.DIGEST_HOUR} <= set(config.SERVING)
    assert not set(config.PUBLISHING) & set(config.SERVING)
