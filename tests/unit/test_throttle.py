"""A cap on the rate of sending: bytes are spread over time, and no byte goes around it."""

import socket
import threading

from pisync_agent.network.connections import Deadline, _Backend
from pisync_agent.network.throttle import Throttle


def test_bytes_are_spread_over_time() -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    throttle = Throttle(rate=8000, monotonic=lambda: now[0], sleep=sleep)
    for _ in range(4):
        throttle.take(4000)
    assert slept == [0.5, 0.5, 0.5]
    now[0] += 60
    throttle.take(4000)
    assert len(slept) == 3, "time in which nothing was sent is not saved up, and is not waited for"
    throttle.take(4000)
    assert slept[3:] == [0.5]


def test_two_threads_share_the_rate() -> None:
    """Two batches in flight: the second comes while the first reckons how long it has the line."""
    slept: list[float] = []
    second: list[threading.Thread] = []

    class Rate(float):
        def __rtruediv__(self, size: float) -> float:
            if not second:
                second.append(threading.Thread(target=throttle.take, args=(4000,)))
                second[0].start()
                second[0].join(0.1)  # without turns it is through by then
            return size / float(self)

    throttle = Throttle(rate=Rate(8000), monotonic=lambda: 100.0, sleep=slept.append)
    throttle.take(4000)
    second[0].join()

    assert slept == [0.5]


def test_the_rate_bounds_what_a_connection_sends() -> None:
    """A real connection; the waits are taken down instead of being slept."""
    taken: list[int] = []

    class Counting(Throttle):
        def take(self, size: int) -> None:
            taken.append(size)

    throttle = Counting(rate=1.0, monotonic=lambda: 0.0, sleep=lambda seconds: None)
    deadline = Deadline(lambda: 0.0, throttle)
    deadline.begin(60)
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def receive() -> None:
            peer, _ = server.accept()
            with peer:
                while part := peer.recv(65536):
                    received.append(part)

        receiving = threading.Thread(target=receive)
        receiving.start()
        stream = _Backend(None, deadline, None).connect_tcp("127.0.0.1", server.getsockname()[1])
        stream.write(bytes(10_000))
        stream.close()
        receiving.join()
    assert sum(map(len, received)) == sum(taken) == 10_000
    assert max(taken) <= 4096
