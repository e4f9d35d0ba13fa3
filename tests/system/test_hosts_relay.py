"""The relay of ``tools/hosts``: packets arrive late, in order, at their host, or never."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

A, B = "10.77.0.1", "10.77.0.2"


@pytest.fixture(scope="module")
def link() -> ModuleType:
    spec = spec_from_file_location("link", Path(__file__).resolve().parents[2] / "tools" / "hosts" / "link.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["link"] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ends() -> Iterator[dict[str, tuple[socket.socket, socket.socket]]]:
    """Devices of two hosts, and the relay's ends of them; like TUN devices they keep packets apart."""
    pairs = {address: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for address in (A, B)}
    for outer, _ in pairs.values():
        outer.settimeout(20)
    yield pairs
    for pair in pairs.values():
        for end in pair:
            end.close()


def packet(source: str, target: str, data: bytes) -> bytes:
    return bytes([0x45, 0, 0, 20 + len(data), *bytes(8)]) + socket.inet_aton(source) + socket.inet_aton(target) + data


def test_packets_are_lost_and_late_as_asked(link: ModuleType) -> None:
    made = link.Link(latency=0.25, loss=0.3, draws=random.Random(1))
    arrivals = [made.arrival(A, B, now=float(now)) for now in range(1000)]
    assert {arrival - now for now, arrival in enumerate(arrivals) if arrival is not None} == {0.25}
    assert arrivals.count(None) == made.lost == 1000 - made.passed and 250 < made.lost < 350
    made.cut.add(B)
    assert made.arrival(A, B, 0) is made.arrival(B, A, 0) is None and made.blocked == 2


def test_the_relay_carries_packets_between_hosts(link: ModuleType, ends: dict[str, tuple]) -> None:
    made = link.Link(latency=0.01)
    with link.Relay(made) as relay:
        for address, (_, inner) in ends.items():
            relay.attach(address, inner.fileno())
        (a, _), (b, _) = ends[A], ends[B]
        a.send(b"\x60" + bytes(60))  # IPv6: not carried
        a.send(packet(A, "10.77.0.9", b"nobody"))
        for number in range(5):
            a.send(packet(A, B, bytes([number])))
        assert [b.recv(100)[20:] for _ in range(5)] == [bytes([number]) for number in range(5)]
        made.cut.add(A)
        a.send(packet(A, B, b"while it was cut off"))
        b.send(packet(B, B, b"to itself"))
        assert b.recv(100)[20:] == b"to itself"
        while not made.blocked:
            pass
        made.cut.clear()
        b.send(packet(B, A, b"back"))
        assert a.recv(100)[20:] == b"back"
        relay.detach(A)
        b.send(packet(B, A, b"to a host that is down"))
        b.send(packet(B, B, b"last"))
        assert b.recv(100)[20:] == b"last"
