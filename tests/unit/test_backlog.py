"""How long the refused are asked to wait: one after the other, and never too early."""

from pisync_receiver.backlog import RETRY_AFTER_MAX, Backlog


def test_retry_after_is_the_backlog_over_the_drain_rate() -> None:
    backlog = Backlog(clock=lambda: 0.0, random=lambda: 0.0)
    for _ in range(200):
        backlog.drained(100, 1.0)
    assert backlog.retry_after(1000) == 10


def test_each_refused_caller_gets_a_later_turn() -> None:
    backlog = Backlog(clock=lambda: 0.0, random=lambda: 0.0)
    for _ in range(200):
        backlog.drained(100, 1.0)
    turns = [backlog.retry_after(1000) for _ in range(1000)]
    assert (turns[0], turns[449], turns[949]) == (10, 15, 20)


def test_jitter_goes_on_top_and_never_below_the_turn() -> None:
    lowest = Backlog(clock=lambda: 0.0, random=lambda: 0.0)
    highest = Backlog(clock=lambda: 0.0, random=lambda: 0.999999)
    assert lowest.retry_after(1000) == 10
    assert highest.retry_after(1000) == 20


def test_retry_after_is_at_least_a_second_and_bounded() -> None:
    assert Backlog(clock=lambda: 0.0, random=lambda: 0.0).retry_after(0) == 1
    slow = Backlog(clock=lambda: 0.0, random=lambda: 0.9)
    slow.drained(1, 10_000.0)
    assert slow.retry_after(10**9) == RETRY_AFTER_MAX
