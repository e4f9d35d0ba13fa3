"""Measure the speeds that have a target on one H100 or H200, and print each number next to its target.

    python tools/gpu/05_bars.py OUT [FOLDER_OF_THE_LAST_CALL]
    python tools/gpu/05_bars.py OUT --smoke --seconds 900          the same with tiny networks, without a GPU

Runs 45_world_speed.py, 47_training_speed.py and 75_agent_updates.py, each with a share of the ten minutes and in a
process of its own, whose output lies in OUT. What was measured is kept: call it again with the folder for the rest. The
scripts say what they require. Two numbers need other programs: TD-MPC2's update beside the official code
(tools/bench_tdmpc2.py), and the quality of CoinRun with backgrounds (10 and 20).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
SHARES = {"worlds": 0.4, "training": 0.65, "agents": 1.0}
"""Of the time that is left when a script starts."""
FILES = {"worlds": "world_speed.json", "training": "training_speed.json", "agents": "agent_updates.json"}

Found = dict[str, dict[str, Any]]
"""The measurements of each script by name."""


class Bar(NamedTuple):
    """A promise: what is measured, what it was on an H200 before (commit 6c00385), and what it has to be.

    Attributes:
        unit: of all three; more is better but of ``ms``.
        row: the script, and the name of its measurement.
        value: reads the number from the measurement.
    """

    work: str
    before: float | None
    bar: float
    unit: str
    row: tuple[str, str]
    value: Callable[[dict[str, Any]], float]


def frames_a_second(worlds: int) -> Callable[[dict[str, Any]], float]:
    return lambda row: worlds * 1e3 / row["captured"]


def milliseconds(row: dict[str, Any]) -> float:
    return float(row["captured"])


def mfu(row: dict[str, Any]) -> float:
    return 100.0 * float(row.get("mfu", float("nan")))


BARS = [
    Bar("play, 600M DiT, 4 sampling steps", 8, 120, "fps", ("worlds", "oasis_600m, 4 sampling steps, bfloat16, 1"),
        frames_a_second(1)),
    Bar("play, 600M DiT, 2 sampling steps", None, 200, "fps", ("worlds", "oasis_600m, 2 sampling steps, bfloat16, 1"),
        frames_a_second(1)),
    Bar("600M DiT, 32 worlds", 259, 500, "fps", ("worlds", "oasis_600m, 4 sampling steps, bfloat16, 32"),
        frames_a_second(32)),
    Bar("CoinRun by Genie, one world", 54, 4, "ms", ("worlds", "coinrun, bfloat16, 1"), milliseconds),
    Bar("a small DiT (Boxing), one world", 47, 2.5, "ms", ("worlds", "boxing, bfloat16, 1"), milliseconds),
    Bar("CoinRun by Genie, 256 worlds", 1511, 10_000, "fps", ("worlds", "coinrun, bfloat16, 256"),
        frames_a_second(256)),
    Bar("a small DiT (Boxing), 256 worlds", 8322, 20_000, "fps", ("worlds", "boxing, bfloat16, 256"),
        frames_a_second(256)),
    Bar("training of the 600M DiT, MFU", 37.7, 45, "%", ("training", "600M DiT, bfloat16"), mfu),
    Bar("the same in float8, of the peak in bfloat16", None, 55, "%", ("training", "600M DiT, float8"), mfu),
    Bar("training of V-JEPA ViT-L/16, MFU", 33, 45, "%", ("training", "V-JEPA ViT-L/16, 16 x 256^2"), mfu),
    Bar("a step of Genie's tokenizer", 136, 40, "ms", ("training", "Genie tokenizer, coinrun_base"),
        lambda row: 1e3 / row["steps_per_second"]),
    Bar("an update of DreamerV3 12M", 377, 80, "ms", ("agents", "DreamerV3 12M, compiled"), lambda row: row["update"]),
    Bar("the same without compiling", 377, 80, "ms", ("agents", "DreamerV3 12M, captured"), lambda row: row["update"]),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=580, help="of this call")
    parser.add_argument("--smoke", action="store_true", help="tiny networks")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    commands = {
        "worlds": ["45_world_speed.py", "--rows", "7", *(["--tiny"] if options.smoke else [])],
        "training": ["47_training_speed.py", *(["--smoke"] if options.smoke else [])],
        "agents": [
            "75_agent_updates.py",
            *(["--smoke"] if options.smoke else ["--agents", "DreamerV3 12M", "TD-MPC2 5M"]),
        ],
    }
    for name, (script, *arguments) in commands.items():
        folders = [options.out / name, *([options.before / name] if options.before else [])]
        seconds = SHARES[name] * (ends - time.monotonic())
        run(script, [*map(str, folders), "--seconds", f"{seconds:.0f}", *arguments], options.out / f"{name}.log")
    print_table({name: read(options.out / name / file) for name, file in FILES.items()})


def run(script: str, arguments: list[str], log: Path) -> None:
    """Run a script with its output in a file; its failure is said, and the others run all the same."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("w") as output:
        status = subprocess.run(
            [sys.executable, str(HERE / script), *arguments], stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    print(f"{script}: {time.monotonic() - began:.0f} s, status {status}, see {log}", flush=True)


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def print_table(found: Found) -> None:
    machines = {str(part["machine"]) for part in found.values() if "machine" in part}
    print(f"\n{'; '.join(sorted(machines))}\n| work | before (H200) | now | bar | |\n|---|---|---|---|---|")
    for work, before, bar, unit, (script, row), value in BARS:
        now, verdict = "not measured yet", ""
        if row in found[script] and "error" in found[script][row]:
            now = found[script][row]["error"][:60]
        elif row in found[script]:
            number = value(found[script][row])
            now, verdict = (
                f"{number:.4g} {unit}",
                "holds" if (number <= bar if unit == "ms" else number >= bar) else "misses",
            )
            if math.isnan(number):
                now, verdict = "unknown: the peak of this device is not", ""
        was = "" if before is None else f"{before:g} {unit}"
        print(f"| {work} | {was} | {now} | {'at most' if unit == 'ms' else 'at least'} {bar:g} {unit} | {verdict} |")


if __name__ == "__main__":
    main()
