"""A link between hosts that delays, loses and holds back IP packets.

The kernels of many containers and small machines have no ``netem``. Here the hosts' packets go through this process:
each host has a TUN device, which is a file from which its outgoing packets are read, and into which those for it are
written.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import socket
import threading
import time
from dataclasses import dataclass, field

LARGEST_PACKET = 65536


@dataclass
class Link:
    """What happens to packets; attributes may be changed at any time.

    Attributes:
        latency: seconds from a host to another one.
        loss: share of packets that are lost.
        cut: addresses of hosts that no packet reaches or leaves.
        draws: decides which packets are lost.
        passed, lost, blocked: how many packets arrived, were lost, and belonged to a host that is cut off.
    """

    latency: float = 0.0
    loss: float = 0.0
    cut: set[str] = field(default_factory=set)
    draws: random.Random = field(default_factory=lambda: random.Random(0))
    passed: int = 0
    lost: int = 0
    blocked: int = 0

    def arrival(self, source: str, target: str, now: float) -> float | None:
        """Return when a packet that is sent now arrives; None where it never does."""
        if source in self.cut or target in self.cut:
            self.blocked += 1
            return None
        if self.draws.random() < self.loss:
            self.lost += 1
            return None
        self.passed += 1
        return now + self.latency


def addresses(packet: bytes) -> tuple[str, str] | None:
    """Return source and target of an IPv4 packet; None for any other."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    return socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])


class Relay:
    """Carries packets between hosts, in a thread of its own. Use it as a context.

    Args:
        link: what happens to packets.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self._files: dict[str, int] = {}
        self._under_way: list[tuple[float, int, str, bytes]] = []
        self._count = 0
        self._lock = threading.Lock()
        self._wake_from, self._wake_to = os.pipe()
        self._ended = False
        self._thread = threading.Thread(target=self._carry, name="relay", daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        os.write(self._wake_to, b".")
        self._thread.join()
        os.close(self._wake_from)
        os.close(self._wake_to)

    def attach(self, address: str, file: int) -> None:
        """Carry the packets of a host from now on.

        Args:
            address: IPv4 address.
            file: gives a packet for each read, and takes one with each write.
        """
        os.set_blocking(file, False)
        with self._lock:
            self._files[address] = file
        os.write(self._wake_to, b".")

    def detach(self, address: str) -> None:
        """Forget a host and what is under way to it; its file may be closed then."""
        with self._lock:
            del self._files[address]
            self._under_way = [entry for entry in self._under_way if entry[2] != address]
            heapq.heapify(self._under_way)

    def _carry(self) -> None:
        while not self._ended:
            with self._lock:
                files = list(self._files.values())
                wait = self._under_way[0][0] - time.monotonic() if self._under_way else None
            try:
                readable, _, _ = select.select(
                    [self._wake_from, *files], [], [], None if wait is None else max(wait, 0)
                )
            except OSError:
                continue  # a file was closed after it was detached
            if self._wake_from in readable:
                os.read(self._wake_from, 4096)
            with self._lock:
                for file in set(readable) & set(self._files.values()):
                    self._take(file)
                self._deliver()

    def _take(self, file: int) -> None:
        """Read all packets that a host has sent."""
        while True:
            try:
                packet = os.read(file, LARGEST_PACKET)
            except OSError:
                return  # there are no more, or the device is gone
            ends = addresses(packet)
            arrival = None if ends is None else self.link.arrival(*ends, time.monotonic())
            if ends is not None and arrival is not None:
                self._count += 1  # equal times: first come, first served
                heapq.heappush(self._under_way, (arrival, self._count, ends[1], packet))
            if not packet:
                return

    def _deliver(self) -> None:
        """Write the packets that have arrived, unless their host is unknown or was cut off meanwhile."""
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(self._under_way)
            if target in self._files and target not in self.link.cut:
                try:
                    os.write(self._files[target], packet)
                except OSError:
                    self.link.lost += 1  # the host's queue is full, or it is going down
