"""When the next sync run is due, and why."""

from collections.abc import Callable

import pytest

from pisync_agent.config import SYNC_DELAY
from pisync_agent.service.schedule import GATHERED, LINK_CHECK_S, LINK_RETRIES_S, QUIET_MOST_S, Due, Schedule


def schedule(*, metered_delay: float | None = None) -> Schedule:
    """Three seconds for company, fifteen minutes between runs; the start was at 100."""
    made = Schedule(now=100, delay=3, interval=900, first=1, metered_delay=metered_delay)
    made.begin()
    made.succeed(110, waiting=False, offline=False)
    return made


def test_the_first_run_comes_soon_after_the_start() -> None:
    made = Schedule(now=100, delay=3, interval=900, first=1)

    assert made.due().at == 101
    assert "started" in made.due().why


def test_without_new_events_the_timer_is_next() -> None:
    assert schedule().due().at == 110 + 900


def test_new_events_are_gathered_for_a_fixed_delay() -> None:
    made = schedule()
    made.recorded(200)
    made.recorded(202)

    assert made.due().at == 203
    assert "new" in made.due().why


def test_a_run_that_left_nothing_clears_new_events() -> None:
    made = schedule()
    made.begin()
    made.recorded(300)
    made.succeed(301, waiting=False, offline=False)

    assert made.due().at == 301 + 900


def test_a_run_that_left_events_is_followed_by_another() -> None:
    made = schedule()
    made.begin()
    made.recorded(300)
    made.succeed(301, waiting=True, offline=False)

    assert made.due().at == 303


def test_new_events_do_not_shorten_the_wait_after_a_failure() -> None:
    made = schedule()
    made.fail(200, wait=60, retry_after=None, why="the last run failed")
    made.recorded(201)

    assert made.due().at == 260
    assert made.due().why == "the last run failed"
    assert not made.starts_over(250)


def test_a_new_link_shortens_the_wait_after_a_failure() -> None:
    made = schedule()
    made.fail(200, wait=600, retry_after=None, why="")
    made.link_up(300)

    assert made.due().at == 300
    assert not made.starts_over(299)
    assert made.starts_over(300)


def test_a_new_link_respects_retry_after() -> None:
    made = schedule()
    made.fail(200, wait=130, retry_after=120, why="")
    made.link_up(210)

    assert made.due().at == 320
    assert not made.starts_over(319)


def test_a_request_overrides_retry_after() -> None:
    made = schedule()
    made.fail(200, wait=3600, retry_after=3600, why="")
    made.request()

    assert made.due().at <= 200
    assert made.starts_over(200)


def test_without_a_link_the_next_check_is_soon() -> None:
    made = schedule()
    made.begin()
    made.succeed(300, waiting=True, offline=True)

    assert made.due().at == 300 + LINK_CHECK_S


def test_a_request_is_served_once() -> None:
    made = schedule()
    made.request()
    made.begin()
    made.succeed(120, waiting=False, offline=False)

    assert made.due().at == 120 + 900


# Gathering


def test_events_are_at_most_a_minute_behind_by_default() -> None:
    """And a run carries what ten events a minute bring in that time."""
    assert 30 <= SYNC_DELAY.parse(str(SYNC_DELAY.default)) <= 55


def test_many_events_end_the_wait_early() -> None:
    made = schedule()
    assert made.recorded(200)
    assert not made.recorded(200.5, GATHERED - 2), "nothing to wake the thread for"
    assert made.due().at == 203

    assert made.recorded(201)
    assert made.due().at <= 201
    assert "many" in made.due().why


def test_a_run_begins_the_count_of_events_again() -> None:
    made = schedule()
    made.recorded(200, GATHERED)
    made.begin()
    made.recorded(300)
    made.succeed(301, waiting=True, offline=False)

    assert made.due().at == 303


def test_a_metered_link_gathers_for_longer() -> None:
    made = schedule(metered_delay=1800)
    made.recorded(200)
    made.set_metered(True)

    assert made.due().at == 200 + 1800
    assert "metered" in made.due().why
    made.set_metered(False)
    assert made.due().at == 203


def test_the_regular_check_does_not_end_the_wait_on_a_metered_link() -> None:
    made = schedule(metered_delay=1800)
    made.set_metered(True)
    made.begin()
    made.succeed(200, waiting=False, offline=False)
    assert made.due().at == 200 + 900
    made.recorded(300)

    assert made.due().at == 300 + 1800


def test_without_a_link_none_is_metered() -> None:
    made = schedule(metered_delay=1800)
    made.set_metered(True)
    made.begin()
    made.recorded(200)
    made.succeed(201, waiting=True, offline=True)

    assert made.due().at == 203


@pytest.mark.parametrize(
    "asked", [Schedule.request, lambda made: made.link_up(300), lambda made: made.recorded(300, GATHERED)]
)
def test_a_request_a_new_link_and_many_events_wait_for_no_metered_link(asked: Callable[[Schedule], object]) -> None:
    made = schedule(metered_delay=1800)
    made.set_metered(True)
    made.recorded(299)
    asked(made)

    assert made.due().at <= 300


# A new link


def failed(made: Schedule, now: float, *, retry_after: float | None = None) -> None:
    made.begin()
    made.fail(now, wait=10 + (retry_after or 0), retry_after=retry_after, why="dns")


def test_a_new_link_is_tried_at_once_and_twice_more_within_seconds() -> None:
    """Names may resolve only a moment later; after that the usual waits follow."""
    made = schedule()
    made.link_up(300)
    assert made.due().at == 300
    now = 300.0
    for wait in LINK_RETRIES_S:
        failed(made, now)
        assert made.due().at == now + wait
        assert made.starts_over(now + wait)
        now += wait
    failed(made, now)

    assert made.due().at == now + 10
    assert sum(LINK_RETRIES_S[:1]) <= 2


def test_a_new_link_found_unusable_is_tried_again_soon() -> None:
    made = schedule()
    made.link_up(300)
    made.begin()
    made.succeed(300, waiting=True, offline=True)

    assert made.due().at == 300 + LINK_RETRIES_S[0]


def test_only_a_new_link_has_these_attempts() -> None:
    made = schedule()
    failed(made, 300)
    assert made.due().at == 310
    made.link_up(305)
    made.begin()
    made.succeed(306, waiting=False, offline=False)
    failed(made, 400)
    assert made.due().at == 410


def test_a_new_links_attempts_respect_retry_after() -> None:
    made = schedule()
    made.link_up(300)
    failed(made, 300, retry_after=100)

    assert made.due().at == 400
    assert not made.starts_over(399)


# Quiet hours

QUIET = Due(at=5000, why="quiet hours until 15:00")


def test_quiet_hours_hold_back_all_but_a_request() -> None:
    made = schedule()
    made.recorded(200, GATHERED)
    made.link_up(200)
    made.set_quiet(200, QUIET)
    assert made.due() == QUIET
    assert not made.starts_over(4999)

    made.request()
    assert made.due().at <= 200
    assert made.starts_over(200)


def test_a_retry_waits_for_the_end_of_quiet_hours() -> None:
    made = schedule()
    failed(made, 300)
    made.set_quiet(301, QUIET)
    assert made.due() == QUIET
    made.set_quiet(5000, None)
    assert made.due().at == 310


def test_quiet_hours_do_not_bring_a_run_forward() -> None:
    made = schedule()
    made.set_quiet(200, Due(at=300, why="quiet hours until 15:00"))

    assert made.due().at == 110 + 900


def test_a_clock_that_is_set_back_again_and_again_holds_runs_back_for_a_day_only() -> None:
    made = schedule()
    made.recorded(200)
    for hour in range(30):
        now = 200.0 + hour * 3600
        made.set_quiet(now, Due(at=now + 7200, why="quiet hours until 15:00"))

    assert made.due().at == 200 + QUIET_MOST_S
