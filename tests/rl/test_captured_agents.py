"""Captured updates and decisions of agents equal plain ones, bit for bit, also after a checkpoint.

The backend here records operations on a CPU (tests/recording_backend.py); where there is a GPU, CUDA graphs as well.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from recording_backend import RecordingBackend
from torch.utils._pytree import tree_leaves

from vwm.core.captured_steps import CALLS_BEFORE_CAPTURE, CUDAGraphs
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.rssm.kl_loss import KLLoss
from vwm.models.rssm.world_model import RSSMWorldModelConfig
from vwm.nn.optimizer import OptimizerConfig
from vwm.planning.cem import CEM
from vwm.planning.gumbel_search import GumbelMuZeroSearch
from vwm.rl.agent import Agent, ReplayBatch
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.dreamer import Dreamer, DreamerImaginationConfig, DreamerOptimizerConfig
from vwm.rl.algorithms.mbpo import MBPO
from vwm.rl.algorithms.muzero import MuZeroAgent
from vwm.rl.algorithms.muzero_config import MuZeroNetworkConfig
from vwm.rl.algorithms.muzero_targets import MuZeroTargetConfig
from vwm.rl.algorithms.pets import PETS
from vwm.rl.algorithms.planet import PlaNet
from vwm.rl.algorithms.sac import SAC
from vwm.rl.algorithms.soft_actor_critic import SACConfig
from vwm.rl.algorithms.tdmpc2 import TDMPC2, TDMPC2NetworkConfig
from vwm.rl.algorithms.tdmpc2_planner import TDMPC2PlannerConfig
from vwm.rl.capturable_optimizers import make_capturable, optimizer_tensors
from vwm.rl.replay_priorities import ReplayPriorities

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
RSSM = {"deter": 16, "hidden": 12, "stoch": 4, "units": 12}
SMALL = {"width": 12, "layers": 1}
OLD = {"norm": "none", "activation": "elu"}
BATCH, LENGTH = {"batch_size": 3}, {"batch_length": 6}


def spaces(shape: tuple[int, ...], kind: str) -> EnvSpaces:
    return EnvSpaces(ObservationSpace.of_shape(shape), ActionSpace(kind, 2))


def dreamer_v3(shape: tuple[int, ...] = (5,), kind: str = "discrete") -> Dreamer:
    world = RSSMWorldModelConfig(**RSSM, classes=4, blocks=2, depth=2)
    horizon = DreamerImaginationConfig(horizon=4)
    optimizer = DreamerOptimizerConfig(lr=1e-2, warmup=3)
    return Dreamer(
        spaces(shape, kind), world, ActorConfig(**SMALL), CriticConfig(**SMALL), optimizer, horizon, **BATCH, **LENGTH
    )


def old_dreamer(version: int) -> Dreamer:
    world = RSSMWorldModelConfig(
        **RSSM, **OLD, classes=4 * (version == 2), cell="norm_gru" if version == 2 else "gru", symlog=False,
        reconstruction_loss="normal", reward_distribution="normal", discount_horizon=0,
        kl=KLLoss("balanced", 0.8, 0.2, 0.0, "mean"),
    )  # fmt: skip
    target = {"target_network": "target", "target_rate": 1.0, "target_every": 2} if version == 2 else {}
    return Dreamer(
        spaces((5,), "continuous"),
        world,
        ActorConfig("dynamics", continuous_distribution="tanh_normal", **OLD, **SMALL),
        CriticConfig("normal", **{"target_network": "none", **target}, **OLD, **SMALL),
        DreamerOptimizerConfig(1e-2, 1e-2, 1e-2, clip=100),
        DreamerImaginationConfig(horizon=4, discount=0.99, normalize_returns=False),
        replay_critic_scale=0.0,
        store_latents=False,
        exploration_noise=0.3,
        **BATCH,
        **LENGTH,
    )


def planet() -> PlaNet:
    world = RSSMWorldModelConfig(**RSSM, classes=0, cell="gru", kl=KLLoss("elbo"), overshooting_distance=3)
    planner = CEM(horizon=3, samples=8, elites=4, iterations=2, max_batch_size=64)
    return PlaNet(spaces((5,), "continuous"), world, planner, **BATCH, **LENGTH)


def pets() -> PETS:
    planner = CEM(horizon=3, samples=8, elites=4, iterations=2, max_batch_size=64)
    return PETS(spaces((5,), "continuous"), members=2, width=8, layers=1, particles=2, planner=planner, batch_size=6)


def sac() -> SAC:
    return SAC(spaces((5,), "continuous"), SACConfig(width=8, layers=1), batch_size=6)


def mbpo() -> MBPO:
    return MBPO(
        spaces((5,), "continuous"), SACConfig(width=8, layers=1), members=3, width=8, layers=1, elites=2,
        model_capacity=20, policy_updates=2, real_ratio=0.5, policy_batch_size=8, batch_size=6,
    )  # fmt: skip


def tdmpc2(shape: tuple[int, ...] = (5,), frames: int = 1) -> TDMPC2:
    networks = TDMPC2NetworkConfig(8, 1, 4, latent_size=16, width=8, num_q=3, dropout=0.1)
    planning = TDMPC2PlannerConfig(horizon=2, samples=8, elites=4, proposals=2, iterations=2)
    # In float32 on a CPU, the Q ensemble reads the members that it evaluates.
    return TDMPC2(spaces(shape, "continuous"), 100, True, frames, 3, networks, planning=planning).double()


def muzero(reanalyze: float = 0.0, shape: tuple[int, ...] = (5,)) -> MuZeroAgent:
    """Return MuZero, or what EfficientZero adds where it searches again."""
    sizes = MuZeroNetworkConfig(2, 16, hidden=16, support_limit=8, prefix_hidden=8, projection_size=8)
    targets = MuZeroTargetConfig(2, 2)
    if reanalyze:
        targets = MuZeroTargetConfig(
            2, 2, 0.9, True, reanalyze_fraction=reanalyze, target_interval=2, staleness_fraction=0.3
        )
    priorities = ReplayPriorities() if reanalyze else None
    optimizer = OptimizerConfig("adamw", lr=1e-2, betas=(0.9, 0.999), warmup=3, schedule="cosine")
    agent = MuZeroAgent(
        spaces(shape, "discrete"),
        GumbelMuZeroSearch(4),
        sizes,
        targets,
        optimizer=optimizer,
        batch_size=6,
        priorities=priorities,
    )
    agent.set_total_updates(10)
    return agent


AGENTS: dict[str, Callable[[], Agent]] = {
    "dreamer v3": dreamer_v3,
    "dreamer v3, images": partial(dreamer_v3, (64, 64, 3), "continuous"),
    "dreamer v2": partial(old_dreamer, 2),
    "dreamer v1": partial(old_dreamer, 1),
    "planet": planet,
    "pets": pets,
    "sac": sac,
    "mbpo": mbpo,
    "tdmpc2": tdmpc2,
    "tdmpc2, images": partial(tdmpc2, (64, 64, 3), 3),
    "muzero": muzero,
    "muzero, reanalyzed": partial(muzero, 0.5),
    "muzero, images": partial(muzero, 0.0, (16, 16, 3)),
}


def make_twins(make: Callable[[], Agent], device: str) -> tuple[Agent, Agent, Any]:
    """Return a plain agent, an accelerated one with the same weights, and the backend."""
    torch.manual_seed(0)
    plain = make().to(device)
    fast = copy.deepcopy(plain)
    make_capturable("plain", plain.optimizers())  # the same kernels
    backend = RecordingBackend() if device == "cpu" else CUDAGraphs()
    fast.accelerate(backend)
    return plain, fast, backend


def observations(agent: Agent, *shape: int) -> torch.Tensor:
    space = agent.spaces.observation
    if space.is_image:
        return torch.randint(256, (*shape, *space.shape), dtype=torch.uint8)
    return torch.randn(*shape, *space.shape)


def random_batch(agent: Agent, seed: int) -> ReplayBatch:
    """Return sequences in which episodes begin and end at random."""
    torch.manual_seed(seed)
    size = (agent.batch_size, agent.batch_length)
    first, last = torch.rand(size) < 0.2, torch.rand(size) < 0.2
    if agent.single_episode:
        first[:, 1 + agent.context_steps :] = False
    actions = agent.spaces.actions
    action = torch.randint(actions.size, size) if actions.is_discrete else torch.rand(*size, actions.size) * 2 - 1
    extras = {name: torch.rand(*size, *shape).to(dtype) for name, (shape, dtype) in agent.extras.items()}
    if agent.priorities is not None:
        extras["relative_probability"] = 0.5 + torch.rand(size[0])
    ends = last & (torch.rand(size) < 0.5)
    batch = ReplayBatch(
        observations(agent, *size), torch.randn(size), first, last, ends, action, extras, torch.zeros(size)
    )
    return batch._replace(
        **{name: getattr(batch, name).to(agent.device) for name in batch._fields if name not in ("extras", "indices")},
        extras={name: value.to(agent.device) for name, value in extras.items()},
    )


def random_time_step(agent: Agent, seed: int) -> TimeStep:
    torch.manual_seed(seed)
    step = TimeStep(observations(agent, 2), torch.rand(2), torch.rand(2) < 0.2, torch.zeros(2) > 0, torch.zeros(2) > 0)
    return TimeStep(*(part.to(agent.device) for part in step))


def equal(ours: Any, theirs: Any) -> bool:
    pairs = list(zip(tree_leaves(ours), tree_leaves(theirs), strict=True))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def changed_by(agent: Agent) -> list[torch.Tensor]:
    """Return all that updates change; learning rates are tensors only where updates are captured."""
    rates = [id(group["lr"]) for optimizer in agent.optimizers().values() for group in optimizer.param_groups]
    held = [tensor for tensor in optimizer_tensors(agent.optimizers()) if id(tensor) not in rates]
    return [*agent.parameters(), *agent.buffers(), *held]


def rounds(agents: tuple[Agent, Agent], count: int, carries: list[Any], first: int = 0) -> Iterator[int]:
    """Let both agents act and learn in the same way, and compare everything."""
    for number in range(first, first + count):
        batch, time_step = random_batch(agents[0], 10 + number), random_time_step(agents[0], 50 + number)
        results, generators = [], []
        for i, agent in enumerate(agents):
            torch.manual_seed(number)
            decision = agent.act(carries[i], time_step, explore=number % 4 != 3)
            carries[i] = decision.carry
            output = agent.update(batch)
            results.append([decision.action, decision.extras, decision.carry, output.logs, output.extras])
            generators.append([torch.get_rng_state(), *torch.cuda.get_rng_state_all()])
        assert equal(*results), number
        assert equal(*(changed_by(agent) for agent in agents)), number
        assert equal(*generators), number
        yield number


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", AGENTS)
def test_captured_agents_equal_plain_ones_also_after_a_checkpoint(name: str, device: str) -> None:
    plain, fast, backend = make_twins(AGENTS[name], device)
    carries = [agent.init_carry(2) for agent in (plain, fast)]
    count = CALLS_BEFORE_CAPTURE + 3
    list(rounds((plain, fast), count, carries))
    assert fast.captured_updates is not None and fast.captured_steps is not None
    assert len(fast.captured_updates.captured) == 1 and not fast.captured_updates.failed
    assert fast.captured_steps.failed == set()
    if device == "cpu":
        assert backend.replays >= count - CALLS_BEFORE_CAPTURE + 1
    if name not in ("planet", "pets"):  # a planner's own steps are captured
        assert fast.captured_steps.captured

    torch.manual_seed(1)
    resumed = AGENTS[name]().to(device)
    resumed.load_state_dict(fast.state_dict())
    for key, optimizer in resumed.optimizers().items():
        optimizer.load_state_dict(copy.deepcopy(fast.optimizers()[key].state_dict()))
    resumed.accelerate(type(backend)())
    list(rounds((plain, resumed), count, carries, first=count))
    assert resumed.captured_updates is not None and resumed.captured_updates.captured


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["dreamer v3", "planet", "tdmpc2", "muzero"])
def test_a_captured_update_that_is_not_finite_is_undone(name: str, device: str) -> None:
    plain, fast, _ = make_twins(AGENTS[name], device)
    list(rounds((plain, fast), CALLS_BEFORE_CAPTURE + 1, [agent.init_carry(2) for agent in (plain, fast)]))
    before = [tensor.clone() for tensor in changed_by(fast)]
    batch = random_batch(fast, 5)
    with pytest.raises(FloatingPointError, match="nothing was learned from this batch"):
        fast.update(batch._replace(reward=batch.reward * torch.nan))
    assert fast.captured_updates is not None and fast.captured_updates.last is not None
    assert equal(before, changed_by(fast))


def test_other_settings_and_replaced_tensors_are_captured_anew() -> None:
    plain, fast, _ = make_twins(planet, "cpu")
    assert fast.captured_updates is not None
    carries = [agent.init_carry(2) for agent in (plain, fast)]
    list(rounds((plain, fast), CALLS_BEFORE_CAPTURE + 1, carries))
    for agent in (plain, fast):
        agent.optimizers()["world"].param_groups[0]["lr"] = 0.1
    list(rounds((plain, fast), CALLS_BEFORE_CAPTURE, carries, first=4))
    for agent in (plain, fast):
        agent.optimizers()["world"].load_state_dict(copy.deepcopy(agent.optimizers()["world"].state_dict()))
    list(rounds((plain, fast), CALLS_BEFORE_CAPTURE, carries, first=7))
    assert len(fast.captured_updates.captured) == 3


def test_what_cannot_be_captured_is_computed_plainly_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast, _ = make_twins(dreamer_v3, "cpu")
    learn = fast.learn
    monkeypatch.setattr(fast, "learn", lambda batch: learn(batch) if float(batch.reward.sum()) < 1e9 else None)
    carries = [agent.init_carry(2) for agent in (plain, fast)]
    with pytest.warns(UserWarning, match=r"^update is not accelerated: RuntimeError: .* reads a value") as warned:
        list(rounds((plain, fast), CALLS_BEFORE_CAPTURE + 2, carries))
    assert len(warned) == 1

    other = dataclasses.replace(OptimizerConfig(warmup=0), name="muon")
    agent = MuZeroAgent(spaces((5,), "discrete"), GumbelMuZeroSearch(4), optimizer=other)
    with pytest.warns(UserWarning, match="updates of MuZeroAgent are not accelerated: Muon counts its steps"):
        agent.accelerate(RecordingBackend())
    assert agent.captured_updates is None and agent.captured_steps is not None
