"""A SLURM cluster on this machine: a controller, a daemon for each node, and munge, all with files of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
FIRST_PORT = 16900
NODE_TIMEOUT = 20
"""Seconds after which SLURM takes a silent node for lost."""

CONFIG = """\
ClusterName=local
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout={timeout}
KillWait=30
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=96 Gres=gpu:8
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def check_rights() -> None:
    """Exit with what is missing to start daemons of SLURM."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        sys.exit(f"{', '.join(missing)}: not installed (on Debian: apt-get install slurm-wlm)")
    if os.geteuid() != 0:
        sys.exit("SLURM's daemons start the processes of jobs as root: run it as root")


class Cluster:
    """The daemons of a cluster whose nodes say that they have 96 cores and 8 GPUs.

    Args:
        folder: for configuration, state and logs; its path must be short enough for a socket (100 characters).
        nodes: how many, ``node1`` to ``nodeN``.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.names = [f"node{number}" for number in range(1, nodes + 1)]
        folder.mkdir(parents=True)
        (folder / "state").mkdir()
        host = os.uname().nodename
        values = {"folder": folder, "nodes": nodes, "host": host, "port": FIRST_PORT, "timeout": NODE_TIMEOUT}
        config = CONFIG.format(**values, first=FIRST_PORT + 1, last=FIRST_PORT + nodes)
        (folder / "slurm.conf").write_text(config)
        for number in range(8):
            (folder / f"gpu{number}").touch()  # SLURM counts devices by their files
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start munge, the controller and all nodes, and wait until they are idle."""
        key = self.folder / "munge" / "key"
        key.parent.mkdir(mode=0o700)
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key": key, "pid": key.with_name("pid"), "log": key.with_name("log"), "seed": key.with_name("seed")}
        options = [f"--{name}-file={path}" for name, path in files.items()]
        self.run("munged", "--force", f"--socket={self.folder / 'munge.sock'}", *options)
        self.run("slurmctld")
        for name in self.names:
            self.boot(name)
        deadline = time.time() + 30
        while self.run("sinfo", "--noheader", "--format=%T", "--partition=low").split() != ["idle"]:
            if time.time() > deadline:
                sys.exit(f"the nodes are not idle after 30 s: see {self.folder / 'slurmctld.log'}")
            time.sleep(0.5)

    def run(self, *command: str) -> str:
        """Run a command of SLURM and return what it prints; exits with its error."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"{' '.join(command)}: {result.stderr.strip()}")
        return result.stdout.strip()

    def boot(self, name: str) -> None:
        """Start the daemon of a node."""
        self.run("slurmd", "-N", name)

    def fail(self, name: str) -> None:
        """Kill the daemon of a node and all processes of jobs on it at once, as by a power failure."""
        mark, log = f"SLURMD_NODENAME={name}\0".encode(), str(self.folder / f"{name}.log")
        for process in self.processes():
            with contextlib.suppress(OSError):  # it has ended
                files = (os.path.realpath(file) for file in (process / "fd").iterdir())
                if mark in (process / "environ").read_bytes() or log in files:
                    os.kill(int(process.name), signal.SIGKILL)

    def processes(self) -> list[Path]:
        """Return the folders in /proc of the daemons and jobs of this cluster."""
        found, mark = [], f"SLURM_CONF={self.folder / 'slurm.conf'}\0".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    found.append(process)
        return found

    def stop(self) -> None:
        """Kill everything that runs."""
        for name in self.names:
            self.fail(name)
        for file in (self.folder / "slurmctld.pid", self.folder / "munge" / "pid"):
            if file.is_file():
                os.kill(int(file.read_text()), signal.SIGKILL)
