"""Hosts on one machine: network namespaces with names and addresses of their own, and no network but the relay's."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

from link import Relay

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


class Host:
    """A host: its address, its name, and the processes that run on it.

    Args:
        name: of the host.
        address: IPv4 address.
        everyone: addresses and names of all hosts, for its ``/etc/hosts``.
        relay: carries its packets.
    """

    def __init__(self, name: str, address: str, everyone: dict[str, str], relay: Relay) -> None:
        self.name = name
        self.address = address
        self.everyone = everyone
        self.relay = relay
        self.namespace = f"vwm-{os.getpid()}-{name}"
        self.settings = Path("/etc/netns") / self.namespace
        self.processes: list[subprocess.Popen[bytes]] = []
        self.is_up = False
        self._device = -1

    def boot(self) -> None:
        """Make the namespace and its device, with nothing left of connections that the host had before."""
        self.settings.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for address, name in self.everyone.items())]
        (self.settings / "hosts").write_text("\n".join(lines) + "\n")
        interface = f"vwm{os.getpid() % 100000}{self.name[-1]}"
        self._device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(self._device, TUNSETIFF, struct.pack("16sH", interface.encode(), IFF_TUN | IFF_NO_PI))
        ip("netns", "add", self.namespace)
        ip("link", "set", interface, "netns", self.namespace)
        inside = ("-n", self.namespace)
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "addr", "add", f"{self.address}/24", "dev", interface)
        ip(*inside, "link", "set", interface, "up")
        self.relay.attach(self.address, self._device)
        self.is_up = True

    def start(self, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on the host, in a session of its own.

        Args:
            command: program and arguments.
            environment: all environment variables.
            log: file that its output is appended to.
        """
        shell = f'hostname {self.name} && exec "$@"'
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", shell, "sh", *command]
        with log.open("ab") as file:
            process = subprocess.Popen(inside, env=environment, stdout=file, stderr=file, start_new_session=True)
        self.processes.append(process)
        return process

    def fail(self) -> None:
        """Lose the host at once, as by a power failure: no other host is told, and no connection is closed."""
        self.relay.detach(self.address)
        os.close(self._device)  # the device goes with it: no kernel sends a last word
        self.is_up = False
        pids = subprocess.run(
            ["ip", "netns", "pids", self.namespace], check=True, capture_output=True, text=True
        ).stdout.split()
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        for process in self.processes:
            process.wait()
        self.processes = []
        ip("netns", "del", self.namespace)

    def remove(self) -> None:
        """Kill what runs on the host, and remove what was made for it."""
        if self.is_up:
            self.fail()
        shutil.rmtree(self.settings, ignore_errors=True)


def ip(*arguments: str) -> None:
    """Call ``ip``; exits with what it says where it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def check_rights() -> None:
    """Exit unless this process may make namespaces and devices."""
    missing = [program for program in ("ip", "unshare", "hostname") if shutil.which(program) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is missing: install iproute2 and util-linux")
    if os.geteuid() != 0:
        sys.exit("this needs root, for network namespaces and TUN devices: run it as root, or in a virtual machine")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        sys.exit("/dev/net/tun is missing: mkdir -p /dev/net && mknod /dev/net/tun c 10 200, or run it on the host")
