"""Measure how fast the shipped worlds step on one GPU: plainly, and captured as CUDA graphs, for 1, 16 and 256 worlds.

    python tools/gpu/45_world_speed.py OUT [FOLDER_OF_THE_LAST_CALL]
    python tools/gpu/45_world_speed.py OUT --batches 1 --count 3          a try without a GPU

Before it times a world, it compares 20 captured frames with plain ones, also after branches. Each measurement is
written to OUT/world_speed.json at once; those of the last call are kept. In addition to torch it requires diffusers,
einops, timm and vector-quantize-pytorch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from vwm.core.network_simulator import NetworkSimulator  # noqa: E402
from vwm.worlds.bundle import load_simulator  # noqa: E402

WAYS = ("plain", "captured")
WARM_UP = 24
"""Steps before the clock starts: the window fills, and steps are captured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("--worlds", nargs="*", default=["coinrun", "carracing", "boxing"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16, 256])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--count", type=int, default=50, help="steps of a round")
    parser.add_argument("--seconds", type=float, default=540, help="of this call")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    file = options.out / "world_speed.json"
    options.out.mkdir(parents=True, exist_ok=True)
    last = (options.before or options.out) / "world_speed.json"
    found: dict[str, Any] = json.loads(last.read_text()) if last.is_file() else {}
    found["machine"] = (
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}, torch {torch.__version__}"
    )
    for world in options.worlds:
        for dtype in options.dtypes:
            for batch in options.batches:
                key = f"{world}, {dtype}, {batch}"
                if key not in found and ends - time.monotonic() > 60:
                    found[key] = measure(world, getattr(torch, dtype), batch, options.count)
                    file.write_text(json.dumps(found, indent=1))
                    print(key, found[key], flush=True)
    print_table(found)


def measure(world: str, dtype: torch.dtype, batch: int, count: int) -> dict[str, Any]:
    """Return milliseconds a step, and whether captured frames equal plain ones."""
    worlds = {
        way: load_simulator(ROOT / "bundles" / world, "auto", dtype, accelerate="auto" if way == "captured" else "none")
        for way in WAYS
    }
    result: dict[str, Any] = {"equal": compare(worlds, batch)}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    states = {way: start(simulator, batch) for way, simulator in worlds.items()}
    for round_number in range(4):
        for way, simulator in worlds.items():
            steps = WARM_UP if round_number == 0 else count
            states[way], seconds = run(simulator, states[way], batch, steps)
            if round_number:
                times[way].append(1e3 * seconds / steps)
    return result | {way: round(statistics.median(values), 3) for way, values in times.items()}


def start(world: NetworkSimulator, batch: int) -> Any:
    assert world.starts is not None
    return world.reset(world.starts[torch.arange(batch) % len(world.starts)])[0]


def actions(world: NetworkSimulator, batch: int, number: int) -> torch.Tensor:
    space = world.spec.actions
    if space.is_discrete:
        return (torch.arange(batch) + number) % space.size
    return torch.sin(torch.arange(batch)[:, None] + number + 2.0 * torch.arange(space.size))


def run(world: NetworkSimulator, state: Any, batch: int, steps: int) -> tuple[Any, float]:
    """Step on and on; return the last state and the seconds until its frame is there."""
    began = time.perf_counter()
    for number in range(steps):
        state, output = world.step(state, actions(world, batch, number))
    assert output.frame is not None
    output.frame.cpu()
    return state, time.perf_counter() - began


def compare(worlds: dict[str, NetworkSimulator], batch: int) -> bool:
    """Step both worlds alike, and from the fifth state twice, and compare their frames."""
    frames = {}
    for way, world in worlds.items():
        state, shown = start(world, batch), []
        for number in range(20):
            after, output = world.step(state, actions(world, batch, number))
            shown.append(output.last_frame)
            if number == 5:  # a branch that is forgotten
                world.step(state, actions(world, batch, 9))
            state = after
        frames[way] = torch.stack([frame for frame in shown if frame is not None])
    return torch.equal(frames["plain"], frames["captured"])


def print_table(found: dict[str, Any]) -> None:
    print(f"\n{found['machine']}\n| world, weights, batch | plain | captured | frames a second, captured | equal |")
    print("|---|---|---|---|---|")
    for key, value in found.items():
        if key != "machine":
            rate = int(key.rsplit(", ", 1)[1]) * 1e3 / value["captured"]
            print(f"| {key} | {value['plain']} ms | {value['captured']} ms | {rate:.0f} | {value['equal']} |")


if __name__ == "__main__":
    main()
