"""Measure the updates and decisions of agents on one GPU: plainly, captured as CUDA graphs, and captured and compiled.

    python tools/gpu/75_agent_updates.py OUT [FOLDER_OF_THE_LAST_CALL]
    python tools/gpu/75_agent_updates.py OUT --smoke          a try without a GPU: small agents, nothing is captured

DreamerV3 1M, 12M and 50M (16 sequences of 64 images), TD-MPC2 5M (256 of 3 + 1 vectors), PlaNet (50 of 50 images) and
MuZero (128 of 11 vectors). Before it times an agent, it compares the weights after six captured updates with those
after six plain ones. Each measurement is written to OUT/agent_updates.json at once; those of the last call are kept.
It requires torch, diffusers, einops, timm and tqdm. tools/bench_tdmpc2.py compares TD-MPC2 with the official code.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from vwm.core.captured_steps import make_capture_backend  # noqa: E402
from vwm.core.devices import allow_tf32, resolve_device  # noqa: E402
from vwm.core.spaces import ActionSpace, ObservationSpace  # noqa: E402
from vwm.envs.time_step import EnvSpaces, TimeStep  # noqa: E402
from vwm.models.rssm.world_model import RSSMWorldModelConfig  # noqa: E402
from vwm.rl.agent import Agent, ReplayBatch  # noqa: E402
from vwm.rl.algorithms.actor import ActorConfig  # noqa: E402
from vwm.rl.algorithms.actor_critic import CriticConfig  # noqa: E402
from vwm.rl.algorithms.dreamer import Dreamer  # noqa: E402
from vwm.rl.algorithms.muzero import MuZeroAgent  # noqa: E402
from vwm.rl.algorithms.planet import PlaNet  # noqa: E402
from vwm.rl.algorithms.tdmpc2 import TDMPC2  # noqa: E402
from vwm.rl.capturable_optimizers import make_capturable  # noqa: E402
from vwm.runs.training_runtime import compile_networks  # noqa: E402

WAYS = ("plain", "captured", "compiled")
"""The last one is captured, too."""
DREAMER_SIZES = {  # deter, hidden, classes, depth, units
    "smoke": (16, 8, 4, 2, 8),
    "1M": (512, 64, 4, 4, 64),
    "12M": (2048, 256, 16, 16, 256),
    "50M": (4096, 512, 32, 32, 512),
}
WARM_UP = 8
"""Updates before the clock starts: they compile and capture."""
IMAGE = (64, 64, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("--smoke", action="store_true", help="small agents and few updates")
    parser.add_argument("--agents", nargs="*", help="only these")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--count", type=int, default=20, help="updates of a round")
    parser.add_argument("--seconds", type=float, default=540, help="of this call")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "agent_updates.json"
    last = (options.before or options.out) / "agent_updates.json"
    found: dict[str, Any] = json.loads(last.read_text()) if last.is_file() else {}
    device = resolve_device("auto")
    allow_tf32(device)
    found["machine"] = f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu'}, torch {torch.__version__}"
    file.write_text(json.dumps(found, indent=1))
    made = smoke_agents() if options.smoke else agents()
    for name in options.agents or made:
        for way in options.ways:
            key = f"{name}, {way}"
            if key not in found and ends - time.monotonic() > 60:
                try:
                    found[key] = measure(made[name], way, device, 2 if options.smoke else options.count)
                except Exception as error:  # noqa: BLE001 - the other rows do not depend on it
                    traceback.print_exc()
                    found[key] = {"error": f"{type(error).__name__}: {error}"[:300]}
                file.write_text(json.dumps(found, indent=1))
                print(key, found[key], flush=True)
    print_table(found)


def agents() -> dict[str, Callable[[], Agent]]:
    return {
        **{f"DreamerV3 {size}": partial(dreamer, size, 16, 64) for size in ("1M", "12M", "50M")},
        "TD-MPC2 5M": lambda: TDMPC2(spaces((24,), "continuous"), episode_length=500),
        "PlaNet": lambda: PlaNet(spaces(IMAGE, "continuous")),
        "MuZero": lambda: MuZeroAgent(spaces((24,), "discrete")),
    }


def smoke_agents() -> dict[str, Callable[[], Agent]]:
    return {
        "DreamerV3 smoke": partial(dreamer, "smoke", 2, 4),
        "TD-MPC2 smoke": lambda: TDMPC2(spaces((24,), "continuous"), episode_length=500, batch_size=8),
        "PlaNet smoke": lambda: PlaNet(spaces((24,), "continuous"), batch_size=2, batch_length=4),
        "MuZero smoke": lambda: MuZeroAgent(spaces((24,), "discrete"), batch_size=4),
    }


def spaces(shape: tuple[int, ...], kind: Any) -> EnvSpaces:
    return EnvSpaces(ObservationSpace.of_shape(shape), ActionSpace(kind, 6))


def dreamer(size: str, batch: int, length: int) -> Dreamer:
    deter, hidden, classes, depth, units = DREAMER_SIZES[size]
    world = RSSMWorldModelConfig(deter=deter, hidden=hidden, classes=classes, depth=depth, units=units)
    actor, critic = ActorConfig(width=units), CriticConfig(width=units)
    return Dreamer(spaces(IMAGE, "continuous"), world, actor, critic, batch_size=batch, batch_length=length)


def prepare(make: Callable[[], Agent], way: str, device: torch.device) -> Agent:
    """Return an agent with the weights that every way begins with."""
    torch.manual_seed(0)
    agent = make().to(device)
    if way == "plain":
        if device.type == "cuda":
            make_capturable("plain", agent.optimizers())  # the same kernels
        return agent
    if way == "compiled":
        compile_networks(agent)
    agent.accelerate(make_capture_backend("auto", device))
    return agent


def random_batch(agent: Agent, seed: int) -> ReplayBatch:
    generator = torch.Generator().manual_seed(seed)
    size, space, actions = (agent.batch_size, agent.batch_length), agent.spaces.observation, agent.spaces.actions
    shape = (*size, *space.shape)
    if space.is_image:
        observation = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    else:
        observation = torch.randn(shape, generator=generator)
    if actions.is_discrete:
        action = torch.randint(actions.size, size, generator=generator)
    else:
        action = torch.rand(*size, actions.size, generator=generator) * 2 - 1
    no, reward = torch.zeros(size, dtype=torch.bool), torch.randn(size, generator=generator)
    extras = {name: torch.zeros(*size, *kept, dtype=dtype) for name, (kept, dtype) in agent.extras.items()}
    if "policy" in extras:
        extras["policy"] += 1 / actions.size
    batch = ReplayBatch(observation, reward, no, no, no, action, extras, torch.zeros(size, dtype=torch.int64))
    moved = {name: getattr(batch, name).to(agent.device) for name in batch._fields if name != "extras"}
    return ReplayBatch(**moved, extras={name: value.to(agent.device) for name, value in extras.items()})


def measure(make: Callable[[], Agent], way: str, device: torch.device, count: int) -> dict[str, Any]:
    """Return milliseconds of an update and of a decision, the largest difference to plain weights, and memory."""
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    result: dict[str, Any] = {}
    if way != "plain":
        result["difference"] = difference(make, way, device)
    agent = prepare(make, way, device)
    batch = random_batch(agent, 1)
    result["update"] = timed(lambda: agent.update(batch), count)
    result["decision"] = timed(decide(agent), count)
    updates = agent.captured_updates
    result["captured"] = updates is not None and bool(updates.captured) and not updates.failed
    result["weights"] = sum(weight.numel() for weight in agent.parameters() if weight.requires_grad)
    if device.type == "cuda":
        result["gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return result


def difference(make: Callable[[], Agent], way: str, device: torch.device) -> float:
    """Return the largest difference of any weight after six updates, relative to the largest change of a weight."""
    reached: list[list[Tensor]] = []
    for other in ("plain", way):
        agent = prepare(make, other, device)
        first = [weight.detach().clone() for weight in agent.parameters()]
        for number in range(6):
            torch.manual_seed(number)
            agent.update(random_batch(agent, number))
        reached.append([weight.detach() for weight in agent.parameters()])
    changes = [float((a - b).abs().max()) for a, b in zip(reached[0], first, strict=True)]
    apart = [float((a - b).abs().max()) for a, b in zip(*reached, strict=True)]
    return max(apart) / max(max(changes), 1e-12)


def decide(agent: Agent) -> Callable[[], Any]:
    carry, space = agent.init_carry(1), agent.spaces.observation
    no, zero = torch.zeros(1, dtype=torch.bool, device=agent.device), torch.zeros(1, device=agent.device)
    time_step = TimeStep(torch.zeros(1, *space.shape, dtype=space.dtype, device=agent.device), zero, no, no, no)
    return lambda: agent.act(carry, time_step, explore=True).action.cpu()


def timed(run: Callable[[], Any], count: int) -> float:
    """Return the median milliseconds over three rounds; every run ends with a value on the host."""
    for _ in range(WARM_UP):
        run()
    rounds = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(count):
            run()
        rounds.append(1e3 * (time.perf_counter() - began) / count)
    return round(statistics.median(rounds), 3)


def print_table(found: dict[str, Any]) -> None:
    print(f"\n{found['machine']}\n| agent, way | weights | update | decision | GB | captured | relative difference |")
    print("|---|---|---|---|---|---|---|")
    for key, row in found.items():
        if key != "machine" and "error" in row:
            print(f"| {key} | {row['error']} |")
        elif key != "machine":
            apart = f"{row['difference']:.1e}" if "difference" in row else ""
            cells = [f"{row['weights'] / 1e6:.1f}M", f"{row['update']} ms", f"{row['decision']} ms"]
            print(f"| {key} | {' | '.join(cells)} | {row.get('gigabytes', '')} | {row['captured']} | {apart} |")


if __name__ == "__main__":
    main()
