"""The listening end of the socket: lines in, lines out, and what a slow or hostile peer cannot do."""

import json
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_agent.peers import STALE_S, LocalServer, Peer
from pisync_common import unix_socket


class Bench:
    """A server that echoes, turned by hand, with a clock set by hand."""

    def __init__(self, path: Path, **limits: int) -> None:
        self.path = path
        self.now = 0.0
        self.selector = selectors.DefaultSelector()
        self.server = LocalServer(path, self.selector, monotonic=lambda: self.now, **limits)
        self.clients: list[socket.socket] = []
        self.taken: list[tuple[Peer, bytes]] = []

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.clients.append(client)
        client.setblocking(False)
        with unix_socket.address(self.path) as name:
            client.connect(name)
        self.turn()
        return client

    def turn(self, times: int = 3) -> None:
        """Handle what is ready; lines are kept in `taken`, not answered."""
        for _ in range(times):
            for key, mask in self.selector.select(0):
                key.data(mask)
            self.taken += self.server.take()

    def echo(self) -> None:
        """Answer all that was taken with what was sent."""
        taken, self.taken = self.taken, []
        for peer, line in taken:
            self.server.answer(peer, {"line": line.decode()})

    def close(self) -> None:
        self.server.close()
        self.selector.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "agent.sock", peers=4, line_bytes=1_000_000, held_bytes=1_500_000)
    yield made
    made.close()


def received(client: socket.socket) -> list[str]:
    """The lines that have come, as far as the socket holds them."""
    found = b""
    while True:
        try:
            more = client.recv(1 << 20)
        except BlockingIOError:
            break
        if not more:
            break
        found += more
    return [json.loads(line).get("line", "?") for line in found.splitlines()]


def is_closed(client: socket.socket) -> bool:
    try:
        while client.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_a_line_is_taken_and_answered(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"hello\n")
    bench.turn()
    bench.echo()

    assert received(client) == ["hello"]


def test_a_line_may_come_in_pieces(bench: Bench) -> None:
    client = bench.connect()
    for piece in (b"hel", b"lo\nnex", b"t", b"\n"):
        client.send(piece)
        bench.turn()
        bench.echo()

    assert received(client) == ["hello", "next"]


def test_lines_sent_ahead_are_answered_one_after_the_other(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"1\n2\n3\n")
    bench.turn()

    assert [line for _, line in bench.taken] == [b"1"]
    for _ in range(3):
        bench.echo()
        bench.turn()
    assert received(client) == ["1", "2", "3"]


def test_lines_of_several_peers_are_taken_together(bench: Bench) -> None:
    clients = [bench.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(b"%d\n" % number)
    bench.turn(1)

    assert sorted(line for _, line in bench.taken) == [b"0", b"1", b"2"]


def test_the_socket_is_for_the_group_alone(bench: Bench) -> None:
    assert bench.path.stat().st_mode & 0o777 == 0o660


def test_a_path_longer_than_an_address_works(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    made = Bench(folder / "agent.sock")
    client = made.connect()
    client.send(b"hello\n")
    made.turn()
    made.echo()

    assert received(client) == ["hello"]
    made.close()


def test_a_line_without_an_end_is_refused_at_the_limit(bench: Bench) -> None:
    client = bench.connect()
    with pytest.raises(OSError):  # noqa: PT012 - it closes while we send
        while True:
            client.setblocking(True)
            client.settimeout(0.01)
            try:
                client.send(b"x" * 100_000)
            except TimeoutError:
                bench.turn()
    assert len(bench.server) == 0


def test_all_unfinished_lines_together_are_bounded(bench: Bench) -> None:
    clients = [bench.connect() for _ in range(3)]
    for _ in range(40):
        for client in clients:
            try:
                client.send(b"x" * 50_000)
            except OSError:
                continue
        bench.turn()

    assert sum(len(peer.incoming) for peer in bench.server._peers.values()) <= 1_500_000
    assert bench.server._held == sum(len(peer.incoming) for peer in bench.server._peers.values())


def test_a_line_that_is_never_finished_is_given_up(bench: Bench) -> None:
    slow, idle = bench.connect(), bench.connect()
    slow.send(b"half a li")
    bench.turn()
    bench.now = STALE_S + 1
    bench.server.sweep()

    assert is_closed(slow)
    assert not is_closed(idle)


def test_a_peer_that_does_not_read_is_not_read_from_and_goes_in_the_end(bench: Bench) -> None:
    client, other = bench.connect(), bench.connect()
    client.send(b"a\n")
    bench.turn()
    (peer, _), bench.taken = bench.taken[0], []
    bench.server.answer(peer, {"line": "x" * 5_000_000})
    client.send(b"b\n")
    other.send(b"c\n")
    bench.turn()

    assert [line for _, line in bench.taken] == [b"c"]
    assert bench.server.sending
    bench.now = STALE_S + 1
    bench.server.sweep()
    assert len(bench.server) == 1


def test_a_slow_reader_gets_its_whole_answer(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"a\n")
    bench.turn()
    bench.server.answer(bench.taken[0][0], {"line": "x" * 3_000_000})
    found = b""
    while not found.endswith(b"\n"):
        try:
            found += client.recv(100_000)
        except BlockingIOError:
            bench.turn()

    assert json.loads(found) == {"line": "x" * 3_000_000}
    assert not bench.server.sending


def test_progress_is_left_out_while_a_peer_does_not_read(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"a\n")
    bench.turn()
    peer = bench.taken[0][0]
    for _ in range(1000):
        bench.server.tell(peer, {"line": "x" * 10_000})

    assert len(peer.outgoing) <= 10_100


def test_beyond_the_limit_the_one_idle_longest_goes(bench: Bench) -> None:
    clients = []
    for number in range(4):
        bench.now = number
        clients.append(bench.connect())
    clients[0].send(b"again\n")
    bench.now = 10
    bench.turn()
    bench.echo()
    newest = bench.connect()

    assert is_closed(clients[1])
    assert [is_closed(each) for each in (clients[0], clients[2], clients[3], newest)] == [False] * 4


def test_where_all_are_busy_the_next_one_waits_its_turn(bench: Bench) -> None:
    clients = [bench.connect() for _ in range(4)]
    for client in clients:
        client.send(b"work\n")
    bench.turn()
    fifth, sixth = bench.connect(), bench.connect()
    for client in (fifth, sixth):
        client.send(b"mine\n")
    bench.turn()

    assert [line for _, line in bench.taken] == [b"work"] * 4 + [b"mine"]
    clients[0].close()
    bench.turn(10)
    assert [line for _, line in bench.taken] == [b"work"] * 4 + [b"mine"] * 2


def test_a_peer_that_has_gone_needs_no_answer(bench: Bench) -> None:
    client = bench.connect()
    client.send(b"a\nb\n")
    bench.turn()
    peer = bench.taken[0][0]
    client.close()
    bench.turn()
    bench.echo()

    assert not bench.server.connected(peer)
    assert len(bench.server) == 0


def test_who_stops_listening_leaves_no_socket_and_serves_on(bench: Bench) -> None:
    client = bench.connect()
    bench.server.stop_listening()
    client.send(b"late\n")
    bench.turn()
    bench.echo()

    assert not bench.path.exists()
    assert received(client) == ["late"]
