"""Kill commands at every write and at random moments; the same command must then end as if nothing had happened.

    python tools/kill_at_writes
    python tools/kill_at_writes --only export dit --moments 0
    python tools/kill_at_writes --folder /dev/shm            # another file system than the temporary folder
    TMPDIR=/dev/shm python tools/kill_at_writes --folder .   # the other way round
    mount -t tmpfs -o size=64m tmpfs SMALL && python tools/kill_at_writes --full-disk SMALL

A write is an audit event of Python in the folder of the case: a file opened for writing, a rename, a removal, a new
folder. What a kill just before it would leave is what lies in the folder at that time, so that one run, which copies
the folder before each write, and a second one, which is stopped and copied at ``--moments`` random times, stand for
all kills; the command is then run to its end from each different copy. Right is: what was there before is readable, the
run from there gives the bytes (of a training: checkpoints, tables, videos and config) of an uninterrupted one, and no
temporary file is left. On a full disk the command must end with a sentence and leave no temporary file.

Processes are forked from this one, which has imported everything, so that a case takes about as long as its command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import agents
import numpy as np
import reports
import shards
import torch
import trainings
from killing import check_command, check_full_disk

COMMANDS = {**shards.COMMANDS, **trainings.COMMANDS, **agents.COMMANDS, **reports.COMMANDS}
IMPORTED_BEFORE_FORKS = (
    "vwm.cli.agent_commands", "vwm.cli.config_checks", "vwm.cli.config_arguments", "vwm.train.export",
    "vwm.tokenizers.shard_encoding", "vwm.models.genie.module", "vwm.models.dit.module", "vwm.models.vjepa.module",
    "vwm.models.vjepa.action_conditioned_module", "vwm.models.mdn_rnn.module", "vwm.tokenizers.causal_vae",
    "vwm.rl.algorithms.dreamer", "vwm.rl.algorithms.ppo", "vwm.eval.world_report", "matplotlib.pyplot",
    "stable_baselines3", "pyarrow.parquet", "pyarrow.dataset", "vwm.data.importers.lerobot",
    "vwm.data.importers.diamond", "vwm.data.importers.rlds", "vwm.data.importers.images",
    "vwm.data.importers.webdataset", "vwm.data.importers.rocket_science", "vwm.data.exporters.lerobot",
    "vwm.data.exporters.webdataset",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="commands, or their first words: fit, export dit")
    parser.add_argument("--moments", type=int, default=20, help="random times at which each command is killed, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the cases lie; the temporary folder by default")
    parser.add_argument("--full-disk", type=Path, metavar="FOLDER", help="of a small file system, to be filled up")
    parser.add_argument("--list", action="store_true", help="print the commands")
    options = parser.parse_args()
    wanted = " ".join(options.only or ())
    names = [name for name in COMMANDS if name == wanted or name.startswith(f"{wanted} " if wanted else "")]
    if options.list or not names:
        sys.exit("\n".join(COMMANDS) if options.list else f"no command {wanted}: --list prints them")
    torch.set_num_threads(1)
    for module in IMPORTED_BEFORE_FORKS:
        importlib.import_module(module)
    failures = 0
    for name in names:
        with tempfile.TemporaryDirectory(dir=options.full_disk or options.folder) as folder:
            try:
                if options.full_disk:
                    failures += check_full_disk(name, COMMANDS[name], Path(folder))
                else:
                    rng = np.random.default_rng(options.seed)
                    failures += check_command(name, COMMANDS[name], options.moments, rng, Path(folder))
            except RuntimeError as error:  # it fails without being killed
                failures += 1
                print(error, flush=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
