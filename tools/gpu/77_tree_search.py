"""Measure tree searches with EfficientZero's network for Atari on one GPU: trees on the host and on the device.

    python tools/gpu/77_tree_search.py OUT [FOLDER_OF_THE_LAST_CALL]
    python tools/gpu/77_tree_search.py OUT --smoke            a try without a GPU: a small network, few searches

For 4 searches in a batch (acting), 256 and 2,816 (the time steps of 256 sequences that are searched again), by PUCT and
Gumbel MuZero's search with 50 simulations, with the network's steps captured as CUDA graphs. First it compares the
visits of both trees. Each measurement is written to OUT/tree_search.json at once; those of the last call are kept. It
prints simulations per second. It requires torch, diffusers, einops and timm.
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

from vwm.core.captured_steps import CapturedSteps, make_capture_backend  # noqa: E402
from vwm.core.devices import allow_tf32, resolve_device  # noqa: E402
from vwm.models.muzero.network import MuZeroNetwork  # noqa: E402
from vwm.planning.gumbel_search import GumbelMuZeroSearch  # noqa: E402
from vwm.planning.puct_search import PUCTSearch  # noqa: E402
from vwm.rl.algorithms.muzero import MuZeroTreeModel  # noqa: E402

SEARCHES = {"puct": PUCTSearch, "gumbel": GumbelMuZeroSearch}
NUM_ACTIONS = 6
SMOKE_SIZES = {"width": 8, "hidden": 8, "support_limit": 5, "prefix_hidden": 8, "projection_size": 8}
ATARI_SIZES = {"width": 64, "hidden": 32, "prefix_hidden": 512, "projection_size": 1024, "projector_layers": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("last", type=Path, nargs="?")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    device = resolve_device("auto")
    allow_tf32(device)
    results = read_results(args.last) | read_results(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    sizes = SMOKE_SIZES if args.smoke else ATARI_SIZES
    torch.manual_seed(0)
    network = MuZeroNetwork([96, 96, 3], NUM_ACTIONS, 4, image_network="pooled", prediction_blocks=1, **sizes)
    for weight in (network.policy_head[-1].weight, network.value_head[-1].weight, network.reward_head.weight):
        torch.nn.init.normal_(weight, std=0.05)  # a new network predicts nothing to search by
    network.to(device)
    for batch in (2, 5) if args.smoke else (4, 256, 2816):
        for kind in SEARCHES:
            name = f"{kind}, {batch} searches"
            if name not in results:
                results[name] = measure(network, kind, batch, simulations=5 if args.smoke else 50)
                (args.out / "tree_search.json").write_text(json.dumps(results, indent=2))
    print_table(results)


def read_results(folder: Path | None) -> dict[str, Any]:
    """Return the measurements in a folder; none where there are none."""
    path = None if folder is None else folder / "tree_search.json"
    return json.loads(path.read_text()) if path is not None and path.is_file() else {}


@torch.no_grad()
def measure(network: MuZeroNetwork, kind: str, batch: int, simulations: int, repeats: int = 5) -> dict[str, Any]:
    """Search with both trees; return simulations per second, and the fraction of searches with equal visits."""
    device = network.device
    windows = torch.randint(0, 256, (batch, 4, 96, 96, 3), dtype=torch.uint8, device=device)
    state, visits = network.represent(windows), []
    result: dict[str, Any] = {"machine": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    backend = make_capture_backend("auto", device)
    for tree in ("host", "device"):
        model = MuZeroTreeModel(network, None if backend is None else CapturedSteps(backend))
        search = SEARCHES[kind](simulations, tree=tree)
        visits.append(search.search(model, state).visits)  # it captures, too
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            search.search(model, state).action.cpu()
            times.append(time.perf_counter() - began)
        result[tree] = round(batch * simulations / statistics.median(times))
    result["equal visits"] = (visits[0] == visits[1]).all(1).double().mean().item()
    return result


def print_table(results: dict[str, Any]) -> None:
    """Print simulations per second of each measurement."""
    print("| search | machine | simulations/s, tree on the host | tree on the device | equal visits |")
    print("|---|---|---|---|---|")
    for name, row in results.items():
        print(f"| {name} | {row['machine']} | {row['host']:,} | {row['device']:,} | {row['equal visits']:.3f} |")


if __name__ == "__main__":
    main()
