"""Measure how fast worlds step on one GPU: plainly, and captured as CUDA graphs (in bfloat16 with compiled blocks).

    python tools/gpu/45_world_speed.py OUT [FOLDER_OF_THE_LAST_CALL]
    python tools/gpu/45_world_speed.py OUT --tiny          the same in two minutes without a GPU

The worlds are those that are shipped, and a diffusion transformer of 600M weights (configs/dit/oasis_600m.yaml, random
weights, over patches of pixels, so that no autoencoder is timed). Before a world is timed, 20 of its captured steps are
compared with plain ones, also after branches: in float32 their frames are equal. Each measurement is written to
OUT/world_speed.json at once; those of the last call are kept, and those for which there is no time are left to the
next. In addition to torch it requires diffusers, einops and timm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from vwm.cli.bench_play import benchmark_actions, benchmark_context  # noqa: E402
from vwm.core.captured_steps import CUDAGraphs  # noqa: E402
from vwm.core.devices import resolve_device  # noqa: E402
from vwm.core.network_simulator import NetworkSimulator  # noqa: E402
from vwm.core.spaces import ActionSpace  # noqa: E402
from vwm.models.dit.network import DiT  # noqa: E402
from vwm.models.dit.sampling import DiffusionSampling  # noqa: E402
from vwm.models.dit.simulator import DiTSimulator  # noqa: E402
from vwm.runs.config_files import load_config  # noqa: E402
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer  # noqa: E402
from vwm.worlds.bundle import load_simulator  # noqa: E402

WARM_UP = 40
"""Steps before the clock starts: the window fills, and steps are captured."""
LARGE = "oasis_600m"
TINY = {"width": 32, "depth": 4, "heads": 2, "window": 4}
RESERVE = {LARGE: 80.0}
"""Seconds that a measurement may take, compilation included; 30 for other worlds."""


class Row(NamedTuple):
    """One measurement."""

    world: str
    dtype: str
    batch: int
    steps: int | None = None
    """Sampling steps; None for those of the bundle."""

    @property
    def name(self) -> str:
        """What the row is called in the table and in the file."""
        steps = "" if self.steps is None else f", {self.steps} sampling steps"
        return f"{self.world}{steps}, {self.dtype}, {self.batch}"


ROWS = [
    Row(LARGE, "bfloat16", 1, 4),
    Row(LARGE, "bfloat16", 1, 2),
    Row(LARGE, "bfloat16", 32, 4),
    *(Row(world, "bfloat16", batch) for world in ("coinrun", "boxing") for batch in (1, 256)),
    *(Row(world, "bfloat16", 16) for world in ("coinrun", "boxing")),
    *(Row("carracing", "bfloat16", batch) for batch in (1, 16, 256)),
    *(Row(world, "float32", batch) for world in ("coinrun", "boxing", "carracing") for batch in (1, 256)),
]
"""The most informative first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=50, help="steps of a round")
    parser.add_argument("--rows", type=int, default=len(ROWS), help="measure the first rows only")
    parser.add_argument("--seconds", type=float, default=540, help="of this call")
    parser.add_argument("--tiny", action="store_true", help="a tiny network instead of the large one, 2 worlds at most")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    file = options.out / "world_speed.json"
    options.out.mkdir(parents=True, exist_ok=True)
    last = (options.before or options.out) / "world_speed.json"
    found: dict[str, Any] = json.loads(last.read_text()) if last.is_file() else {}
    found["machine"] = (
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}, torch {torch.__version__}"
    )
    for row in ROWS[: options.rows]:
        if options.tiny:
            row = row._replace(batch=min(row.batch, 2))
        reserve = 5 if options.tiny else RESERVE.get(row.world, 30)
        if row.name in found:
            continue
        if ends - time.monotonic() < reserve:
            print(f"no time left for {row.name!r}: give the next call this folder")
            break
        found[row.name] = measure(row, 3 if options.tiny else options.count, options.tiny)
        file.write_text(json.dumps(found, indent=1))
        print(row.name, found[row.name], flush=True)
    file.write_text(json.dumps(found, indent=1))
    print_table(found)


def measure(row: Row, count: int, tiny: bool) -> dict[str, Any]:
    """Return milliseconds a step, and how captured frames differ from plain ones."""
    torch.cuda.empty_cache()
    worlds = make_worlds(row, tiny)
    result: dict[str, Any] = {"differs": compare(worlds, row.batch)}
    times: dict[str, list[float]] = {way: [] for way in worlds}
    states = {way: world.reset(benchmark_context(world, row.batch))[0] for way, world in worlds.items()}
    for number in range(4):
        for way, world in worlds.items():
            steps = (3 if tiny else WARM_UP) if number == 0 else count
            states[way], seconds = run(world, states[way], row.batch, steps)
            if number:
                times[way].append(1e3 * seconds / steps)
    return result | {way: round(statistics.median(values), 3) for way, values in times.items()}


def make_worlds(row: Row, tiny: bool) -> dict[str, NetworkSimulator]:
    """Return the plain and the captured simulator of a row."""
    device, dtype = resolve_device("auto"), getattr(torch, row.dtype)
    if row.world == LARGE:
        plain: NetworkSimulator = large_world(tiny).to(device, dtype)
    else:
        plain = load_simulator(ROOT / "bundles" / row.world, device, dtype, "none")
    if row.steps is not None:
        plain = plain.with_sampling(steps=row.steps)
    if device.type != "cuda":
        return {"plain": plain, "captured": plain}
    return {"plain": plain, "captured": plain.accelerate(CUDAGraphs(), "inductor" if row.dtype == "bfloat16" else None)}


def large_world(tiny: bool) -> DiTSimulator:
    """Return a world of the large network with random weights, also where it is initialized to zero."""
    settings = load_config(ROOT / f"configs/dit/{LARGE}.yaml")["model"]["init_args"]["dynamics"]["init_args"]
    side = 2
    settings |= {"channels": 3 * side**2} | (TINY | {"grid": [4, 4]} if tiny else {})
    torch.manual_seed(0)
    with resolve_device("auto"), torch.no_grad():
        network = DiT(**settings)
        for weight in network.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.02)
    height, width = (side * n for n in settings["grid"])
    return DiTSimulator(
        tokenizer=PixelTokenizer((height, width), side),
        dynamics=network,
        outcomes=None,
        actions=ActionSpace("continuous", settings["action_dims"]),
        sampling=DiffusionSampling(steps=4),
        context_frames=1,
    )


def run(world: NetworkSimulator, state: Any, batch: int, steps: int) -> tuple[Any, float]:
    """Step on and on; return the last state and the seconds until its frame is there."""
    given = [benchmark_actions(world, batch, number).cpu() for number in range(steps)]
    began = time.perf_counter()
    for action in given:
        state, output = world.step(state, action)
    assert output.frame is not None
    output.frame.cpu()
    return state, time.perf_counter() - began


def compare(worlds: dict[str, NetworkSimulator], batch: int) -> float:
    """Step both worlds alike, and from the fifth state twice; the mean difference of pixels, of 255."""
    frames = {}
    for way, world in worlds.items():
        state, shown = world.reset(benchmark_context(world, batch))[0], []
        for number in range(20):
            after, output = world.step(state, benchmark_actions(world, batch, number))
            shown.append(output.last_frame)
            if number == 5:  # a branch that is forgotten
                world.step(state, benchmark_actions(world, batch, 9))
            state = after
        frames[way] = torch.stack([frame for frame in shown if frame is not None]).double()
    return round(float((frames["plain"] - frames["captured"]).abs().mean()), 4)


def print_table(found: dict[str, Any]) -> None:
    print(f"\n{found['machine']}\n| world, weights, batch | plain | captured | frames a second, captured | differs |")
    print("|---|---|---|---|---|")
    for name, value in found.items():
        if name != "machine":
            rate = int(name.rsplit(", ", 1)[1]) * 1e3 / value["captured"]
            print(f"| {name} | {value['plain']} ms | {value['captured']} ms | {rate:.0f} | {value['differs']} of 255 |")


if __name__ == "__main__":
    main()
