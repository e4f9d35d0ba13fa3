"""stable-worldmodel's planning protocols on Two-Rooms, Push-T and Reacher; see docs/planning_benchmarks.md.

    python tools/goal_benchmark.py two_rooms data/two_rooms_goals --world two_rooms --out runs/two_rooms_goals

Without a world it plays what the world is compared with. Run it again to continue an evaluation that was interrupted.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from vwm.eval.goal_protocol import PROTOCOL_TASKS, ProtocolSettings, format_protocol_results, run_goal_protocol


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=PROTOCOL_TASKS)
    parser.add_argument("data", type=Path, help="recorded episodes with states")
    parser.add_argument("--world", type=Path, help="a folder of vwm export, or a shipped world")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of PyTorch; by default its own choice")
    for setting in fields(ProtocolSettings):
        flag = f"--{setting.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=setting.default, help=f"by default {setting.default}")
    options = vars(parser.parse_args())
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    settings = ProtocolSettings(**{setting.name: options[setting.name] for setting in fields(ProtocolSettings)})
    task = PROTOCOL_TASKS[options["task"]]
    result = run_goal_protocol(options["world"], options["data"], options["out"], task, settings, options["device"])
    print(format_protocol_results(result))


if __name__ == "__main__":
    main()
