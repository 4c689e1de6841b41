"""Group commit among threads."""

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from pisync_agent import group_commit
from pisync_agent.group_commit import GroupCommit, OutOfTime

DEADLINE_S = 20


class Slow:
    """A commit that lasts until it is released; it keeps the groups it saw."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self, items: Sequence[int], deadline: float) -> list[int]:
        self.groups.append(list(items))
        self.begun.release()
        assert self.go_on.acquire(timeout=DEADLINE_S)
        return [item * 10 for item in items]


def start(*actions: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def submit(group: GroupCommit[int, int], item: int, *, seconds: float = DEADLINE_S) -> int:
    return group.submit(item, deadline=time.monotonic() + seconds)


def waiting(group: GroupCommit[int, int], number: int) -> None:
    deadline = threading.Event()
    for _ in range(DEADLINE_S * 1000):
        if len(group._waiting) == number:
            return
        deadline.wait(0.001)
    raise AssertionError(f"{len(group._waiting)} wait, not {number}")


def test_a_caller_alone_commits_at_once() -> None:
    groups: list[list[int]] = []

    def commit(items: Sequence[int], deadline: float) -> list[int]:
        groups.append(list(items))
        return [item + 1 for item in items]

    group = GroupCommit(commit)
    assert [submit(group, 1), submit(group, 2)] == [2, 3]
    assert groups == [[1], [2]]


def test_items_submitted_during_a_commit_are_the_next_group() -> None:
    commit = Slow()
    group = GroupCommit(commit)
    results: dict[int, int] = {}

    def caller(number: int) -> Callable[[], None]:
        return lambda: results.__setitem__(number, submit(group, number))

    threads = start(caller(0))
    assert commit.begun.acquire(timeout=DEADLINE_S)
    threads += start(*[caller(number) for number in range(1, 20)])
    waiting(group, 19)
    commit.go_on.release(2)
    join(threads)
    assert [len(items) for items in commit.groups] == [1, 19]
    assert results == {number: number * 10 for number in range(20)}


def test_a_group_has_a_maximum_size() -> None:
    commit = Slow()
    group = GroupCommit(commit, most=5)
    results: list[int] = []
    threads = start(lambda: results.append(submit(group, 0)))
    assert commit.begun.acquire(timeout=DEADLINE_S)
    threads += start(*[lambda: results.append(submit(group, 1)) for _ in range(12)])
    waiting(group, 12)
    commit.go_on.release(4)
    join(threads)
    assert [len(items) for items in commit.groups] == [1, 5, 5, 2]
    assert results.count(10) == 12


def test_an_error_reaches_the_callers_of_its_group_only() -> None:
    commit = Slow()
    fails = [False]

    def maybe(items: Sequence[int], deadline: float) -> list[int]:
        results = commit(items, deadline)
        if fails[0]:
            raise ValueError("no room")
        return results

    group = GroupCommit(maybe)
    errors: list[str] = []

    def caller() -> None:
        try:
            submit(group, 1)
        except ValueError as error:
            errors.append(str(error))

    threads = start(caller)
    assert commit.begun.acquire(timeout=DEADLINE_S)
    threads += start(caller, caller, caller)
    waiting(group, 3)
    commit.go_on.release()
    assert commit.begun.acquire(timeout=DEADLINE_S)
    fails[0] = True
    commit.go_on.release()
    join(threads)
    assert errors == ["no room"] * 3
    fails[0] = False
    commit.go_on.release()
    assert submit(group, 5) == 50


def test_a_commit_with_missing_results_is_an_error() -> None:
    group: GroupCommit[int, int] = GroupCommit(lambda items, deadline: [])
    with pytest.raises(ValueError, match="shorter"):
        submit(group, 1)


def test_many_threads_get_their_own_results_from_one_commit_at_a_time() -> None:
    alone = threading.Lock()
    overlaps: list[int] = []

    def commit(items: Sequence[int], deadline: float) -> list[int]:
        if not alone.acquire(blocking=False):
            overlaps.append(1)
            return [item * item for item in items]
        threading.Event().wait(0.0001)  # let others arrive
        alone.release()
        return [item * item for item in items]

    group: GroupCommit[int, int] = GroupCommit(commit, most=3)
    wrong: list[int] = []

    def caller(first: int) -> Callable[[], None]:
        def work() -> None:
            wrong.extend(number for number in range(first, first + 50) if submit(group, number) != number * number)

        return work

    join(start(*[caller(1000 * number) for number in range(16)]))
    assert (wrong, overlaps) == ([], [])


def caller(group: GroupCommit[int, int], item: int) -> Callable[[], None]:
    def call() -> None:
        submit(group, item)

    return call


def test_a_caller_leaves_at_its_deadline_whether_its_commit_has_begun_or_not() -> None:
    commit = Slow()
    group = GroupCommit(commit)
    threads = start(caller(group, 0))
    assert commit.begun.acquire(timeout=DEADLINE_S)
    with pytest.raises(OutOfTime) as early:
        submit(group, 1, seconds=0.01)
    assert (early.value.begun, group._waiting) == (False, [])

    threads += start(caller(group, 2))
    waiting(group, 1)
    late: list[bool] = []

    def short() -> None:
        try:
            submit(group, 3, seconds=3)
        except OutOfTime as error:
            late.append(error.begun)

    others = start(short)
    waiting(group, 2)
    commit.go_on.release()
    assert commit.begun.acquire(timeout=DEADLINE_S)
    join(others)
    commit.go_on.release()
    join(threads)
    assert (commit.groups, late) == ([[0], [2, 3]], [True])
    commit.go_on.release()
    assert submit(group, 4) == 40


def test_only_the_leaders_time_was_over_so_the_others_are_the_next_group() -> None:
    groups: list[list[int]] = []
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def commit(items: Sequence[int], deadline: float) -> list[int]:
        groups.append(list(items))
        begun.release()
        assert go_on.acquire(timeout=DEADLINE_S)
        if 1 in items:
            raise OutOfTime
        return list(items)

    group = GroupCommit(commit)
    failed: list[int] = []

    def leader() -> None:
        try:
            submit(group, 1)
        except OutOfTime:
            failed.append(1)

    results: list[int] = []
    threads = start(lambda: results.append(submit(group, 0)))
    assert begun.acquire(timeout=DEADLINE_S)
    threads += start(leader)
    waiting(group, 1)
    threads += start(lambda: results.append(submit(group, 2)))
    waiting(group, 2)
    go_on.release(3)
    join(threads)
    assert (groups, failed, results) == ([[0], [1, 2], [2]], [1], [0, 2])


def test_an_interrupted_caller_leaves_and_hands_the_lead_on(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Slow()
    group = GroupCommit(commit)
    threads = start(caller(group, 0))
    assert commit.begun.acquire(timeout=DEADLINE_S)

    def interrupted(ticket: object, seconds: float) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(group_commit._Ticket, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            submit(group, 1)
    commit.go_on.release(2)
    join(threads)
    assert submit(group, 2) == 20
    assert commit.groups == [[0], [2]]
