"""When the next sync run is due, and why."""

from pisync_agent.agenda import LINK_LOOK_S, LINK_SETTLE_S, Agenda


def agenda() -> Agenda:
    """Three seconds for company, fifteen minutes between runs; the start was at 100."""
    made = Agenda(now=100, delay=3, interval=900, first=1)
    made.begin()
    made.succeed(110, waiting=False, offline=False)
    return made


def test_the_first_run_comes_soon_after_the_start() -> None:
    made = Agenda(now=100, delay=3, interval=900, first=1)

    assert made.due().at == 101
    assert "started" in made.due().why


def test_without_news_the_timer_is_next() -> None:
    assert agenda().due().at == 110 + 900


def test_new_events_wait_for_company_and_later_ones_do_not_put_it_off() -> None:
    made = agenda()
    made.news(200)
    made.news(202)

    assert made.due().at == 203
    assert "new" in made.due().why


def test_a_run_that_left_nothing_has_delivered_what_came_meanwhile() -> None:
    made = agenda()
    made.begin()
    made.news(300)
    made.succeed(301, waiting=False, offline=False)

    assert made.due().at == 301 + 900


def test_a_run_that_left_something_is_followed_by_another() -> None:
    made = agenda()
    made.begin()
    made.news(300)
    made.succeed(301, waiting=True, offline=False)

    assert made.due().at == 303


def test_after_a_failure_new_events_do_not_hasten_the_next_try() -> None:
    made = agenda()
    made.fail(200, wait=60, retry_after=None, why="the last run failed")
    made.news(201)

    assert made.due().at == 260
    assert made.due().why == "the last run failed"
    assert not made.starts_over(250)


def test_a_new_link_hastens_the_next_try() -> None:
    made = agenda()
    made.fail(200, wait=600, retry_after=None, why="")
    made.link(300)

    assert made.due().at == 300 + LINK_SETTLE_S
    assert not made.starts_over(300)
    assert made.starts_over(300 + LINK_SETTLE_S)


def test_a_new_link_does_not_hasten_what_the_receiver_asked_for() -> None:
    made = agenda()
    made.fail(200, wait=130, retry_after=120, why="")
    made.link(210)

    assert made.due().at == 320
    assert not made.starts_over(319)


def test_somebody_who_asks_is_served_at_once_whatever_the_receiver_asked_for() -> None:
    made = agenda()
    made.fail(200, wait=3600, retry_after=3600, why="")
    made.ask()

    assert made.due().at <= 200
    assert made.starts_over(200)


def test_without_a_link_it_looks_for_one_again_soon() -> None:
    made = agenda()
    made.begin()
    made.succeed(300, waiting=True, offline=True)

    assert made.due().at == 300 + LINK_LOOK_S


def test_what_was_asked_for_is_done_once() -> None:
    made = agenda()
    made.ask()
    made.begin()
    made.succeed(120, waiting=False, offline=False)

    assert made.due().at == 120 + 900
