"""Train one run on two hosts whose network and machines fail, and compare it with an undisturbed one.

    python tools/hosts                   # as root
    python tools/hosts --store tcp       # the agents meet at a port of host-a instead of in a file

The hosts are network namespaces with names and addresses of their own. Their packets go through TUN devices and a relay
that delays and loses them (``link.py``), since many kernels lack ``tc netem``. On each host runs an agent of torchrun
with one worker of ``vwm fit``; both see one folder, as of a network file system. A host that fails falls silent at
once, its processes are killed, and it comes back without any memory of its connections.

It needs root: namespaces and devices are the kernel's. Nothing outside them is changed, and all are removed at the end.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "elastic_run"))

from comparison import compare, read_parts
from link import Link, Relay
from namespaces import Host, check_rights
from small_run import PATIENCE, environment, set_limit, wait_for_step
from small_world import write_world_config

ADDRESSES = {"10.77.0.1": "host-a", "10.77.0.2": "host-b"}
SAID = re.compile(r"(watchdog: |vwm fit: |rank \d+ \(|all ranks are|stopped: |warning: |.*RendezvousConnectionError).*")
"""Lines of the hosts' logs that the table quotes."""
STEPS = 150
PAUSE = 8.0
"""Seconds between the steps of a run that waits for a host."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["file", "tcp"], default="file", help="of the rendezvous")
    parser.add_argument("--latency", type=float, default=20.0, help="milliseconds from host to host")
    parser.add_argument("--loss", type=float, default=0.01, help="share of packets that are lost")
    parser.add_argument("--steps", type=int, default=4, help="steps before and after each fault")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--arguments", nargs=argparse.REMAINDER, default=[], help="further arguments of vwm fit")
    options = parser.parse_args()
    check_rights()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="hosts-"))
    config = write_world_config(folder, STEPS)
    subprocess.run(
        [sys.executable, "-m", "vwm.cli.main", "fit", "-c", str(config), "--run", str(folder / "uninterrupted")],
        env=environment(), check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    link = Link(latency=options.latency / 1000, loss=options.loss)
    with Relay(link) as relay:
        run = TwoHosts(folder, config, options.store, options.arguments, relay)
        try:
            print("| what happens | at step | goes on after | processes | seconds until then |\n|---|---|---|---|---|")
            run.play(options.steps)
        finally:
            run.close()
    print("\n" + "\n".join(run.quotes))
    print(f"\n{link.passed} packets arrived, {link.lost} were lost, {link.blocked} were sent to or from a host cut off")
    print(compare(folder / "hosts", folder / "uninterrupted"))


class TwoHosts:
    """A run on two hosts, and what happens to them.

    Args:
        folder: of the run ``hosts``, the logs and the rendezvous file.
        config: of ``vwm fit``.
        store: ``file`` or ``tcp``: where the agents of torchrun meet.
        arguments: further arguments of ``vwm fit``.
        relay: carries the packets.
    """

    def __init__(self, folder: Path, config: Path, store: str, arguments: list[str], relay: Relay) -> None:
        self.folder = folder
        self.run = folder / "hosts"
        self.config = config
        self.store = store
        self.arguments = arguments
        self.link = relay.link
        self.hosts = {name: Host(name, address, ADDRESSES, relay) for address, name in ADDRESSES.items()}
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.quotes: list[str] = []
        self.limit = 0
        self.raised_at = 0.0

    def play(self, steps: int) -> None:
        """Train, with one fault after the other, and print a row for each."""
        network = f"{self.link.latency * 1000:g} ms, {self.link.loss:.0%} of packets lost"
        self.disturb(f"start on two hosts, {network}", self.start_both, 2, 0)
        self.disturb("network parted for 20 s", lambda: self.part(lambda: time.sleep(20)), 2, steps)
        self.disturb("network parted until the watchdog acts", lambda: self.part(self.await_watchdog), 2, steps)
        self.disturb("host-b fails", self.hosts["host-b"].fail, 1, steps)
        self.disturb("host-b comes back", lambda: self.start("host-b"), 2, steps)
        self.disturb("host-a, the host of rank 0, fails", self.hosts["host-a"].fail, 1, steps)
        self.disturb("host-a comes back", lambda: self.start("host-a"), 2, steps)
        set_limit(self.run, 10**9)
        for name, agent in self.agents.items():
            if agent.wait() != 0:
                sys.exit(f"the agent of {name} ended with {agent.returncode}: see {self.log(name)}")

    def disturb(self, what: str, fault: Callable[[], object], ranks: int, steps: int) -> None:
        """Let the run make some steps, do something to it, wait until a number of ranks goes on, and print a row."""
        self.go_on(steps)
        before, offsets = read_parts(self.run)[-ranks:], {name: self.log_size(name) for name in self.hosts}
        self.limit = self.last_step() + 3
        set_limit(self.run, self.limit)
        fault()
        began = time.time()
        parts = wait_for_step(self.run, 1, ranks, began, self.folder, self.tend)
        workers = "the same" if {part[5] for part in parts} <= {part[5] for part in before} else "new"
        first, seconds = parts[0][0] - 1, parts[0][6] - began
        at = before[-1][0] if before else ""
        print(f"| {what} | {at} | {first} | {ranks}, {workers} | {seconds:.0f} |", flush=True)
        for name, offset in offsets.items():
            self.quotes += [f"{what}: {name}: {line}" for line in self.said(name, offset)]

    def go_on(self, steps: int) -> None:
        """Let the run make a number of steps."""
        target = self.last_step() + steps
        while self.last_step() < target:
            self.tend()
            time.sleep(0.05)

    def tend(self) -> None:
        """Let a run go on that stands at its limit, and start agents again that have ended, as a service would."""
        if self.last_step() >= self.limit and time.time() - self.raised_at > PAUSE:
            self.limit, self.raised_at = self.last_step() + 1, time.time()
            set_limit(self.run, self.limit)
        for name, agent in list(self.agents.items()):
            if self.hosts[name].is_up and agent.poll() not in (None, 0):
                self.quotes.append(f"the agent of {name} ended with exit code {agent.returncode} and is started again")
                self.start(name)

    def start(self, name: str) -> None:
        """Start the agent of torchrun on a host, which is booted if it is down."""
        host = self.hosts[name]
        if not host.is_up:
            host.boot()
        endpoint = "host-a:29400" if self.store == "tcp" else str(self.folder / "rendezvous")
        launch = ["--nnodes=1:2", "--nproc_per_node=1", "--max_restarts=100", "--rdzv_backend=c10d"]
        launch += [f"--rdzv_endpoint={endpoint}", "--rdzv_id=hosts", "--monitor_interval=0.5"]
        launch += [f"--rdzv_conf=store_type={self.store},last_call_timeout=5"]
        command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "--", "vwm.cli.main", "fit"]
        command += ["-c", str(self.config), "--run", str(self.run), "--trainer.strategy", "ddp", *self.arguments]
        self.agents[name] = host.start(command, environment(), self.log(name))

    def start_both(self) -> None:
        """Start the run."""
        for name in self.hosts:
            self.start(name)

    def part(self, wait: Callable[[], object]) -> None:
        """Part the network until a wait ends."""
        self.link.cut.update(ADDRESSES)
        wait()
        self.link.cut.clear()

    def await_watchdog(self) -> None:
        """Wait until a rank says that the run hangs, and some seconds longer."""
        offsets = {name: self.log_size(name) for name in self.hosts}
        deadline = time.time() + PATIENCE
        while not any("watchdog: " in line for name, offset in offsets.items() for line in self.said(name, offset)):
            if time.time() > deadline:
                sys.exit(f"no watchdog for {PATIENCE:.0f} s: see {self.folder}")
            time.sleep(0.5)
        time.sleep(5)

    def last_step(self) -> int:
        """Return the last step that was computed; 0 before the first."""
        return max((part[0] for part in read_parts(self.run)), default=0)

    def log(self, name: str) -> Path:
        """Return the file of what a host prints."""
        return self.folder / f"{name}.log"

    def log_size(self, name: str) -> int:
        """Return how much it has printed so far."""
        return self.log(name).stat().st_size if self.log(name).exists() else 0

    def said(self, name: str, offset: int) -> list[str]:
        """Return the lines that tell of faults, each once, which a host has printed since then."""
        if not self.log(name).exists():
            return []
        lines = self.log(name).read_bytes()[offset:].decode(errors="replace").splitlines()
        return list(dict.fromkeys(line.strip()[:300] for line in lines if SAID.match(line.strip())))

    def close(self) -> None:
        """Kill what still runs, and remove the hosts."""
        for host in self.hosts.values():
            host.remove()


if __name__ == "__main__":
    main()
