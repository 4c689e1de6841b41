"""Whether there is a link: which question is asked of the kernel for which kind of name."""

import select
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pisync_agent.service.service import Service
from pisync_agent.sync.connectivity import ELSEWHERE, LinkWatch, has_link, own_addresses, routed

IPV4_HEAD = "Iface\tDestination\tGateway \tFlags\n"


class Kernel:
    """Routes to the addresses it was given, and notes what it is asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    def __call__(self, address: str) -> bool:
        self.asked.append(address)
        return address in self.addresses


def routes(tmp_path: Path, *, ipv4: str = "", ipv6: str = "") -> tuple[Path, Path]:
    files = (tmp_path / "route", tmp_path / "ipv6_route")
    files[0].write_text(IPV4_HEAD + ipv4)
    files[1].write_text(ipv6)
    return files


LAN = "wlan0\t0000000A\t00000000\t0001\n"
LOOPBACK_ONLY = "00000000000000000000000000000001 80 0 00 0 00000000 2 0 80200001       lo\n"


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("10.0.0.5:8080", "10.0.0.5"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("::1", "::1"),
        ("[fd00::5]:443", "fd00::5"),
        ("fd00::5", "fd00::5"),
    ],
)
def test_an_address_needs_a_route_to_itself(host: str, asked: str) -> None:
    kernel = Kernel(asked)

    assert has_link(host, routed=kernel, environ={}, routes=())
    assert kernel.asked == [asked]
    assert not has_link(host, routed=Kernel(*ELSEWHERE), environ={}, routes=())


@pytest.mark.parametrize("address", ELSEWHERE)
@pytest.mark.parametrize("host", ["pisync.example.org", "pisync.example.org:8443", "pibox.local", "pibox"])
def test_a_name_needs_a_default_route_of_either_family(host: str, address: str) -> None:
    assert has_link(host, routed=Kernel(address), environ={}, routes=())
    assert not has_link(host, routed=Kernel(), environ={}, routes=())


def test_this_machine_is_always_reachable() -> None:
    assert has_link("localhost:8080", routed=Kernel(), environ={}, routes=())


@pytest.mark.parametrize(("host", "expected"), [("pibox.local", True), ("pibox", True), ("pisync.example.org", False)])
def test_a_local_name_is_reachable_with_any_network(tmp_path: Path, host: str, expected: bool) -> None:
    network = routes(tmp_path, ipv4=LAN)

    assert has_link(host, routed=Kernel(), environ={}, routes=network) is expected


def test_loopback_is_not_a_network(tmp_path: Path) -> None:
    network = routes(tmp_path, ipv6=LOOPBACK_ONLY)

    assert not has_link("pibox.local", routed=Kernel(), environ={}, routes=network)


def test_a_proxy_may_be_on_a_network_without_a_default_route(tmp_path: Path) -> None:
    network, environ = routes(tmp_path, ipv4=LAN), {"HTTPS_PROXY": "http://10.0.0.1:3128"}

    assert has_link("pisync.example.org", routed=Kernel(), environ=environ, routes=network)
    assert not has_link("pisync.example.org", routed=Kernel(), environ=environ, routes=routes(tmp_path))


def test_the_real_kernel_is_asked() -> None:
    assert routed("127.0.0.1")
    assert not routed("300.0.0.1")
    assert has_link("127.0.0.1:1")


def test_a_watch_can_be_waited_for_and_closed() -> None:
    with LinkWatch() as watch:
        assert select.select([watch], [], [], 0)[0] in ([], [watch])
        watch.drain()
        watch.drain()


def test_the_address_towards_the_world_is_found_without_a_packet() -> None:
    assert own_addresses(("127.0.0.1", "not an address")) == {"127.0.0.1"}


def test_another_link_counts_as_new_although_there_was_one_all_the_time(tmp_path: Path) -> None:
    """From a cable to a wireless network, say: the connection that was kept is gone."""
    service: Any = Service(tmp_path, settings=cast("Any", {}))
    ups: list[None] = []
    losses: list[None] = []
    service._scheduler = SimpleNamespace(link_up=lambda: ups.append(None))
    for route, links in [
        ({"10.0.0.5"}, 1),
        ({"10.0.0.5"}, 1),
        ({"192.168.7.2"}, 2),
        (set[str](), 2),
        (set[str](), 2),
        ({"192.168.7.2"}, 3),
    ]:
        service._runner = SimpleNamespace(
            route=lambda route=route: frozenset(route), link_lost=lambda: losses.append(None)
        )
        service._on_link_event(SimpleNamespace(drain=lambda: None))
        assert len(ups) == links
    assert len(losses) == 2
