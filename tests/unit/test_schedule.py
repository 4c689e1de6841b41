"""When the next sync run is due, and why."""

from pisync_agent.service.schedule import LINK_CHECK_S, LINK_SETTLE_S, Schedule


def schedule() -> Schedule:
    """Three seconds for company, fifteen minutes between runs; the start was at 100."""
    made = Schedule(now=100, delay=3, interval=900, first=1)
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

    assert made.due().at == 300 + LINK_SETTLE_S
    assert not made.starts_over(300)
    assert made.starts_over(300 + LINK_SETTLE_S)


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
