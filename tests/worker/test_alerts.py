"""Each crossing is told of once, by whichever worker, to real services that may fail."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.fault_proxy import FaultProxy
from tests.support.receiver_process import wait_until
from tests.support.worker.database import WorkerDatabase
from tests.support.worker.process import WorkerProcess, once
from tests.support.worker.smtp_sink import SmtpSink
from tests.support.worker.webhook import Webhook

AT_ONCE = {"digest_window": "0s", "digest_every": "0s"}


def alerts_of(log: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == "pisync_receiver.alerts"]


def test_a_device_that_keeps_failing_and_recovers_is_told_of_twice(database: WorkerDatabase, webhook: Webhook) -> None:
    database.device("pibook-1", "Nakuru")
    since = 1_795_500_000_000
    chosen = {"database_url": database.url, "alert_urls": webhook.url, "time_zone": "Africa/Nairobi"} | AT_ONCE

    database.crossing("pibook-1", since_ms=since, failures=3)
    first = once(**chosen)
    database.crossing("pibook-1", "recovered", failures=0, errors=None)
    second = once(**chosen)
    third = once(**chosen)

    assert [done.returncode for done in (first, second, third)] == [0, 0, 0], first.stderr + second.stderr
    assert webhook.titles() == ["pibook-1 (Nakuru) keeps failing", "pibook-1 (Nakuru) recovered"]
    assert webhook.told[0]["message"] == "3 sync runs in a row failed since 2026-11-24 09:00 EAT (dns)."
    assert webhook.told[1]["message"].startswith("It got through at 2026-")
    assert [line["message"] for line in alerts_of(first.stderr)] == ["pibook-1 (Nakuru) keeps failing"]
    assert alerts_of(third.stderr) == []
    assert database.waiting_crossings() == 0


def test_two_workers_tell_each_crossing_once(database: WorkerDatabase, webhook: Webhook, tmp_path: Path) -> None:
    chosen = {"database_url": database.url, "alert_urls": webhook.url, "digest_over": "1000"} | AT_ONCE
    with (
        WorkerProcess(tmp_path / "one", **chosen) as one,
        WorkerProcess(tmp_path / "two", **chosen) as two,
    ):
        wait_until(lambda: "started" in one.log() and "started" in two.log(), "both work")
        for number in range(60):
            database.crossing(f"pibook-{number}")
        wait_until(lambda: len(webhook.told) >= 60, "all is told")
        for number in range(60):
            database.crossing(f"pibook-{number}", "recovered")
        wait_until(lambda: len(webhook.told) >= 120, "all is told")
        wait_until(lambda: unsent(database) == 0, "all is marked")
        assert (one.stop(), two.stop()) == (0, 0)
        logged = Counter(line["message"] for worker in (one, two) for line in alerts_of(worker.log()))

    assert Counter(webhook.titles()) == logged
    assert set(logged.values()) == {1}
    assert len(logged) == 120
    for number in range(60):
        told = [title for title in webhook.titles() if title.split()[0] == f"pibook-{number}"]
        assert told == [f"pibook-{number} keeps failing", f"pibook-{number} recovered"]


def unsent(database: WorkerDatabase) -> int:
    return int(database.one("SELECT count(*) FROM notices WHERE sent_ms IS NULL"))


def test_a_dead_district_is_one_message(database: WorkerDatabase, webhook: Webhook) -> None:
    for number in range(4000):
        site = "Nakuru" if number < 3987 else "Kisumu"
        database.rows("INSERT INTO devices (device_id, site) VALUES (%s, %s)", f"pibook-{number:04}", site)
    database.rows(
        "INSERT INTO crossings (device_id, kind, at_ms, consecutive_failures, failing_since_ms, last_errors)"
        " SELECT device_id, 'failing', 1795500000000, 3, 1795499000000, '{\"timeout\": 2}' FROM devices"
    )

    done = once(database_url=database.url, alert_urls=webhook.url)

    assert done.returncode == 0, done.stderr
    (told,) = webhook.told
    assert told["title"] == "4,000 devices: 4,000 keep failing"
    assert told["message"].splitlines() == [
        "Nakuru: 3,987 devices keep failing since 2026-11-24 05:43 UTC (timeout)",
        "Kisumu: 13 devices keep failing since 2026-11-24 05:43 UTC (timeout)",
    ]
    assert database.waiting_crossings() == 0


def test_quiet_hours_hold_alerts_back(database: WorkerDatabase, webhook: Webhook) -> None:
    now = datetime.now(UTC)
    quiet = f"{now - timedelta(hours=2):%H:%M}-{now + timedelta(hours=2):%H:%M}"
    chosen = {"database_url": database.url, "alert_urls": webhook.url} | AT_ONCE
    database.crossing("pibook-1")
    database.crossing("pibook-2")
    database.crossing("pibook-1", "recovered")

    during = once(quiet_hours=quiet, **chosen)
    assert (during.returncode, webhook.told, database.waiting_crossings()) == (0, [], 3)

    # The same three, as the morning after sees them: they came in hours that were quiet, and it is none now.
    over = f"{now - timedelta(hours=3):%H:%M}-{now - timedelta(hours=1):%H:%M}"
    database.rows("UPDATE crossings SET at_ms = at_ms - 7200000")
    after = once(quiet_hours=over, **chosen)

    assert after.returncode == 0, after.stderr
    assert webhook.titles() == ["2 devices: 1 keeps failing, 1 failed and recovered"]
    assert database.waiting_crossings() == 0


def test_a_service_that_fails_is_tried_again_and_the_log_has_it(
    database: WorkerDatabase, webhook: Webhook, tmp_path: Path
) -> None:
    webhook.failing = True
    chosen = {"database_url": database.url, "alert_urls": webhook.url + "?token=hunter2"} | AT_ONCE
    database.crossing("pibook-1")

    failed = once(**chosen)
    assert failed.returncode == 1
    assert "it is kept and goes again" in failed.stderr
    assert (webhook.told, webhook.refused) == ([], 1)
    assert [line["message"] for line in alerts_of(failed.stderr)] == ["pibook-1 keeps failing"]

    database.crossing("pibook-1", "recovered")
    with WorkerProcess(tmp_path / "log", **chosen) as worker:
        wait_until(lambda: webhook.refused > 1, "it is tried again")
        webhook.failing = False
        wait_until(lambda: len(webhook.told) == 2, "it is told")
        wait_until(lambda: "works again" in worker.log(), "the log says so")
        wait_until(lambda: unsent(database) == 0, "all is marked")
        assert worker.stop() == 0

    assert webhook.titles() == ["pibook-1 keeps failing", "pibook-1 recovered"]
    assert "hunter2" not in failed.stderr + worker.log()


def test_one_service_that_fails_holds_up_no_other(database: WorkerDatabase, webhook: Webhook) -> None:
    with SmtpSink() as mail:
        webhook.failing = True
        chosen = {"database_url": database.url, "alert_urls": f"{webhook.url}, {mail.url}"} | AT_ONCE
        database.crossing("pibook-1")

        first = once(**chosen)
        webhook.failing = False
        second = once(**chosen)

        assert (first.returncode, second.returncode) == (1, 0), second.stderr
        assert webhook.titles() == ["pibook-1 keeps failing"]
        (sent,) = mail.mails
    assert sent["Subject"] == "pibook-1 keeps failing"
    assert "3 sync runs in a row failed" in sent.get_content()


def test_a_worker_killed_while_it_sends_loses_nothing(
    database: WorkerDatabase, webhook: Webhook, tmp_path: Path
) -> None:
    """The one window: the service may have taken it, and the mark is not there. It is told again, not lost."""
    database.crossing("pibook-1")
    port = int(webhook.url.rpartition(":")[2].partition("/")[0])
    with FaultProxy("127.0.0.1", port) as proxy:
        url = webhook.url.replace(str(port), str(proxy.port)) + "?rto=60"
        chosen = {"database_url": database.url, "alert_urls": url} | AT_ONCE
        proxy.latency = 5.0
        with WorkerProcess(tmp_path / "log", **chosen) as worker:
            wait_until(lambda: bool(proxy.requests), "the notice is under way")
            worker.kill()
        assert unsent(database) == 1
        proxy.heal()
        assert once(**chosen).returncode == 0

    assert set(webhook.titles()) == {"pibook-1 keeps failing"}
    assert unsent(database) == 0


def test_without_a_service_the_log_is_told(database: WorkerDatabase) -> None:
    database.crossing("pibook-1")
    done = once(database_url=database.url, **AT_ONCE)
    assert [line["message"] for line in alerts_of(done.stderr)] == ["pibook-1 keeps failing"]
    assert database.waiting_crossings() == 0


def test_while_digests_go_the_next_one_waits(database: WorkerDatabase, webhook: Webhook) -> None:
    chosen = {"database_url": database.url, "alert_urls": webhook.url, "digest_window": "0s", "digest_every": "1h"}
    for number in range(6):
        database.crossing(f"pibook-{number}")
    once(**chosen)
    assert len(webhook.told) == 1
    database.crossing("pibook-7")
    once(**chosen)
    assert len(webhook.told) == 1
    database.rows("UPDATE notices SET made_ms = made_ms - 3600000")
    once(**chosen)
    assert webhook.titles()[1:] == ["pibook-7 keeps failing"]


def test_old_notices_are_forgotten(database: WorkerDatabase, webhook: Webhook) -> None:
    webhook.failing = True
    chosen = {"database_url": database.url, "alert_urls": webhook.url} | AT_ONCE
    database.crossing("pibook-1")
    once(**chosen)
    database.rows("UPDATE notices SET made_ms = made_ms - 31 * 86400000::bigint")
    done = once(**chosen)
    assert "notices that no service took are given up" in done.stderr
    assert database.one("SELECT count(*) FROM notices") == 0
