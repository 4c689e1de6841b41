"""Apprise gets what is meant, and its URLs stay secret."""

import asyncio

import pytest

from pisync_common.errors import SettingError
from pisync_receiver.alerts.services import AppriseService
from tests.support.webhook import Webhook

# Apprise loads all its services at once, and some use a module that Python will remove.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated and slated for removal:DeprecationWarning")


def overflow(url: str) -> str:
    return str(AppriseService(url, 1)._plugin.overflow_mode.value)


def test_a_long_notice_stays_one_message_unless_its_url_says_otherwise() -> None:
    url = "tgram://123456789:abcdefg_hijklmnop/12315544/"
    assert overflow(url) == "truncate"
    assert overflow(url + "?overflow=split") == "split"


def test_a_target_identifies_its_url_without_its_secrets() -> None:
    one, two = (AppriseService(f"json://ann:hunter{n}@127.0.0.1/hook", n) for n in (1, 2))
    assert one.target == AppriseService("json://ann:hunter1@127.0.0.1/hook", 7).target != two.target
    assert "hunter" not in one.target + one.name


def test_a_url_that_apprise_does_not_know_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingError, match="Apprise does not know URL number 3") as caught:
        AppriseService("nosuchthing://hunter2", 3)
    assert "hunter2" not in str(caught.value)


def test_a_name_is_no_html_where_a_service_takes_html() -> None:
    with Webhook() as webhook:
        service = AppriseService(webhook.url + "?format=html", 1)
        asyncio.run(service.send("<script>", "<script>alert(1)</script>: 1 device\n=HYPERLINK(1)"))
    (sent,) = webhook.received
    assert "<script>" not in sent["message"]
    assert "&lt;script&gt;" in sent["message"]
