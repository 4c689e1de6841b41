"""The outbox against a model in plain Python: in whatever order, nothing is lost, doubled or renumbered."""

import json
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pisync_agent.errors import InvalidEvent
from pisync_agent.outbox.models import OutboxLimits
from tests.support.outboxes import Faults, dead_letters, event, full_disk, opened, receipt

KEEP = 2_000
KEYS = st.sampled_from([None, None, None, "a", "b", "c"])


class OutboxModel(RuleBasedStateMachine):
    """`recorded` is every event of the present stream in order; the rest are numbers into it."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.faults = Faults()

    @initialize()
    def begin(self) -> None:
        self.recorded: list[int] = []
        self.keys: dict[str, tuple[int, int]] = {}
        self.delivered = 0
        self.trimmed = 0
        self.dead: dict[tuple[str, int], int | None] = {}
        self.content = 0
        self.open()

    def open(self) -> None:
        limits = OutboxLimits(keep_delivered_bytes=KEEP)
        self.outbox = opened(self.home, limits=limits, connect=self.faults.connect)

    def teardown(self) -> None:
        self.outbox.close()
        shutil.rmtree(self.home)

    @rule(keys=st.lists(KEYS, max_size=4), contents=st.lists(st.integers(0, 1), min_size=4, max_size=4))
    def append(self, keys: list[str | None], contents: list[int]) -> None:
        made, expected = [], []
        for key, same in zip(keys, contents, strict=False):
            self.content += 1
            content = same if key else self.content + 10
            made.append(event(content, id=key))
            if key in self.keys and key is not None:
                seq, known = self.keys[key]
                expected.append(seq if known == content else None)
                continue
            self.recorded.append(content)
            expected.append(len(self.recorded))
            if key is not None:
                self.keys[key] = (len(self.recorded), content)
        results = self.outbox.append(made)
        assert [None if isinstance(result, InvalidEvent) else result for result in results] == expected

    @rule(size=st.integers(1, 5), rejected=st.booleans())
    def send(self, size: int, rejected: bool) -> None:
        batch = [seq for seq, _ in self.outbox.read(self.delivered, max_events=size, max_bytes=10**6)]
        assert batch == list(range(max(self.delivered, self.trimmed) + 1, len(self.recorded) + 1))[:size]
        if not batch:
            return
        bad = [(batch[0], "invalid_event")] if rejected else []
        self.delivered = batch[-1]
        assert self.outbox.settle(receipt(self.outbox, batch[-1], rejected=bad), batch) == self.delivered
        for seq, _ in bad:
            self.dead.setdefault((self.outbox.stream, seq), None)

    @rule(back=st.integers(0, 10))
    def receiver_restored(self, back: int) -> None:
        self.outbox.begin_run()
        watermark = max(0, self.delivered - back)
        self.delivered = min(self.delivered, max(watermark, self.trimmed))
        assert self.outbox.settle(receipt(self.outbox, watermark), []) == self.delivered

    @precondition(lambda self: self.delivered >= 1)
    @rule()
    def late_receipt(self) -> None:
        """Of the first events, again."""
        self.outbox.settle(receipt(self.outbox, self.delivered), [1])

    @rule()
    def trim(self) -> None:
        gone = self.outbox.trim()
        self.trimmed += gone
        assert self.trimmed <= self.delivered
        for key, (seq, _) in list(self.keys.items()):
            if seq <= self.trimmed:
                del self.keys[key]

    @precondition(lambda self: any(self.waiting_dead()))
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        # By seq alone the one of this stream is meant, else the newest: ask for such a one.
        stream, seq = data.draw(st.sampled_from(self.waiting_dead()))
        content = self.content_of(stream, seq)
        self.recorded.append(content)
        new = self.outbox.requeue(seq)
        assert new == len(self.recorded) == self.outbox.requeue(seq)
        self.dead[stream, seq] = new

    def waiting_dead(self) -> list[tuple[str, int]]:
        found: dict[int, tuple[str, int]] = {}
        for stream, seq in self.dead:
            if seq not in found or stream == self.outbox.stream or found[seq][0] != self.outbox.stream:
                found[seq] = (stream, seq)
        return [place for place in found.values() if self.dead[place] is None]

    def content_of(self, stream: str, seq: int) -> int:
        (letter,) = [each for each in dead_letters(self.outbox) if (each.stream, each.seq) == (stream, seq)]
        content: int = json.loads(letter.body)["data"]["n"]
        return content

    @rule()
    def opened_again(self) -> None:
        self.outbox.close()
        self.open()

    @rule(broken=st.booleans())
    def new_stream(self, broken: bool) -> None:
        """Events that wait go on in a new stream, whether the file broke or not."""
        dead_here = {seq for stream, seq in self.dead if stream == self.outbox.stream}
        transferred = [seq for seq in range(self.delivered + 1, len(self.recorded) + 1) if seq not in dead_here]
        if broken:
            self.outbox.close()
            with (self.home / "outbox.db").open("r+b") as file:
                file.write(bytes(100))
            self.open()
        else:
            self.outbox.start_new_stream("conflict")
        places = {old: new for new, old in enumerate(transferred, start=1)}
        self.recorded = [self.recorded[seq - 1] for seq in transferred]
        self.keys = {key: (places[seq], content) for key, (seq, content) in self.keys.items() if seq in places}
        self.dead = {place: None for place, again in self.dead.items() if again is None}
        self.delivered = self.trimmed = 0

    @rule()
    def disk_full_for_a_moment(self) -> None:
        def full(sql: str) -> None:
            if sql.startswith("UPDATE pointers"):
                raise full_disk()

        batch = [seq for seq, _ in self.outbox.read(self.delivered, max_events=2, max_bytes=10**6)]
        self.faults.fault = full
        if batch:
            self.delivered = batch[-1]
            self.outbox.settle(receipt(self.outbox, batch[-1]), batch)
        assert self.outbox.delivered == self.delivered
        self.faults.fault = lambda sql: None
        self.outbox.move_to_dead_letters(10**9, "none", "only to write what is in memory")

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        state = self.outbox.state()
        assert (state.last_seq, state.delivered, state.kept_from) == (
            len(self.recorded),
            self.delivered,
            self.trimmed + 1,
        )
        assert state.waiting == len(self.recorded) - self.delivered
        held = self.outbox.read(0, max_events=10**6, max_bytes=10**9)
        assert [seq for seq, _ in held] == list(range(self.trimmed + 1, len(self.recorded) + 1))
        assert [json.loads(body)["data"]["n"] for _, body in held] == self.recorded[self.trimmed :]
        assert {(each.stream, each.seq): each.requeued_as for each in dead_letters(self.outbox)} == self.dead


TestOutboxModel = OutboxModel.TestCase
TestOutboxModel.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
