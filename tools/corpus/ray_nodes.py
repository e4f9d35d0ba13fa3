"""Run ``vwm ingest`` on a Ray cluster of several nodes, one of which fails while another one comes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from disturbed import POLL_SECONDS, descendants, start_ingest

PORT = 26379
PATIENCE = 300.0
"""Seconds in which a node must have started."""


class RayNodes:
    """A Ray cluster on this machine: a head without processors, and nodes with one each.

    Args:
        folder: for logs.
        nodes: how many to start with.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # for nodes and the command
        self.folder = folder
        self.address = f"127.0.0.1:{PORT}"
        self.head = self._start("head", "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        self.nodes = [self.add(f"node-{number}") for number in range(nodes)]

    def add(self, name: str) -> subprocess.Popen[bytes]:
        """Start a node of one processor and wait until it has joined."""
        return self._start(name, f"--address={self.address}", "--num-cpus=1")

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        log = self.folder / f"{name}.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *options]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        deadline = time.monotonic() + PATIENCE
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"Ray's {name} did not start: see {log}")
            time.sleep(POLL_SECONDS)
        return process

    def fail(self, node: subprocess.Popen[bytes]) -> None:
        """Kill all processes of a node at once, as by a power failure."""
        for number in (node.pid, *descendants(node.pid)):
            os.kill(number, signal.SIGKILL)
        node.wait()

    def stop(self) -> None:
        """Kill all nodes."""
        for node in (*self.nodes, self.head):
            if node.poll() is None:
                self.fail(node)


def run_with_lost_node(arguments: Sequence[str], out: Path, log: Path, nodes: int, kills: tuple[int, int]) -> str:
    """Run ``vwm ingest`` on several nodes, kill one of them, and start another; return what happened.

    Args:
        arguments: of the command.
        out: folder of the shards.
        log: output of the command; logs of Ray are written beside it.
        nodes: of the cluster.
        kills: numbers of decoded shards from which on a node fails, and another one comes.
    """
    cluster = RayNodes(log.parent, nodes)
    happened: list[str] = []
    try:
        process = start_ingest([*arguments, "--ray-address", cluster.address], log)
        while process.poll() is None:
            decoded = sum(1 for _ in (out / "clips").glob("*.json"))
            if not happened and decoded >= kills[0]:
                cluster.fail(cluster.nodes.pop())
                happened.append(f"node lost after {decoded} shards")
            elif len(happened) == 1 and decoded >= kills[1]:
                cluster.nodes.append(cluster.add(f"node-{nodes}"))
                happened.append(f"another one from {decoded} shards on")
            time.sleep(POLL_SECONDS)
    finally:
        cluster.stop()
    if process.returncode:
        raise RuntimeError(f"vwm ingest failed:\n{log.read_text()}")
    return ", ".join(happened)
