"""Decisions, losses and weights of agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from factories import randomize
from hashing import hashed, put, put_weights
from simulator_cases import fixed_actions

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.rssm.kl_loss import KLLoss
from vwm.models.rssm.world_model import RSSMWorldModelConfig
from vwm.planning.cem import CEM
from vwm.planning.gumbel_search import GumbelMuZeroSearch
from vwm.planning.puct_search import PUCTSearch
from vwm.rl.agent import Agent, ReplayBatch
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.dreamer import Dreamer, DreamerImaginationConfig, DreamerOptimizerConfig
from vwm.rl.algorithms.muzero import MuZeroAgent
from vwm.rl.algorithms.muzero_config import MuZeroNetworkConfig
from vwm.rl.algorithms.muzero_targets import MuZeroTargetConfig
from vwm.rl.algorithms.planet import PlaNet
from vwm.rl.algorithms.tdmpc2 import TDMPC2, TDMPC2DistributionConfig, TDMPC2NetworkConfig
from vwm.rl.algorithms.tdmpc2_planner import TDMPC2PlannerConfig
from vwm.rl.replay_buffer import ReplayBuffer


def live(agent: Agent, steps: int, count: int = 2, length: int = 8) -> tuple[ReplayBuffer, list[Any]]:
    """Collect a history in a random environment whose reward depends on the action."""
    replay = ReplayBuffer(count * steps, count, agent.spaces, agent.extras)
    generator = torch.Generator().manual_seed(3)
    carry, reward, acted = agent.init_carry(count), torch.zeros(count), []
    shape = (count, *agent.spaces.observation.shape)
    for t in range(steps):
        first, last = torch.full((count,), t % length == 0), torch.full((count,), t % length == length - 1)
        seen = (
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            if agent.spaces.observation.is_image
            else torch.randn(shape, generator=generator)
        )
        time_step = TimeStep(seen, torch.where(first, 0.0, reward), first, last, last & (torch.arange(count) == 0))
        done = agent.act(carry, time_step, explore=True)
        replay.add(time_step, done.action, done.extras)
        acted.append(done.action)
        carry, reward = (
            done.carry,
            done.action.float().flatten(1).sum(-1) if done.action.ndim > 1 else done.action.float(),
        )
    return replay, acted


def agent_case(name: str, make: Callable[[], Agent], steps: int = 40) -> None:
    torch.manual_seed(0)
    agent = make()
    put_weights(f"{name}/begun", agent)
    torch.manual_seed(1)
    replay, acted = live(agent, steps)
    put(f"{name}/acted", acted)
    agent.set_total_updates(10)
    batch: ReplayBatch = replay.sample(agent.batch_size, agent.batch_length, agent.single_episode, agent.context_steps)
    put(f"{name}/batch", list(batch))
    for number in range(2):
        torch.manual_seed(10 + number)
        updated = agent.update(batch)
        for key, value in updated.logs.items():
            put(f"{name}/update{number}/{key}", float(value))
        put(f"{name}/update{number}/extras", [updated.extras, updated.indices])
    put_weights(name, agent)
    put(
        f"{name}/optimizers",
        sorted(hashed(list(o.state_dict()["state"].values())) for o in agent.optimizers().values()),
    )
    carry, no = agent.init_carry(2), torch.zeros(2, dtype=torch.bool)
    for explore in (True, False):
        torch.manual_seed(20)
        now = TimeStep(batch.observation[:2, 0], torch.zeros(2), ~no if explore else no, no, no)
        done = agent.act(carry, now, explore=explore)
        put(f"{name}/act_explore_{explore}", [done.action, done.extras])
        carry = done.carry
    torch.manual_seed(21)
    watched = agent.observe(carry, now, done.action)
    put(f"{name}/watch", [watched.action, watched.extras])
    try:
        world = agent.simulator()
    except ValueError:
        put(f"{name}/simulator", "refused")
        return
    context = batch.observation[:2, :2]
    state, shown = world.reset(context, 7)
    state, output = world.step(state, fixed_actions(world.spec.actions, 2, 0))
    put(f"{name}/simulator", [shown, *output])


SMALL: dict[str, Any] = {"deter": 16, "hidden": 12, "stoch": 4, "units": 12}
OLD: dict[str, Any] = {
    "norm": "none",
    "activation": "elu",
    "symlog": False,
    "reconstruction_loss": "normal",
    "reward_distribution": "normal",
}
WORLDS = {
    3: RSSMWorldModelConfig(**SMALL, classes=4, blocks=2),
    2: RSSMWorldModelConfig(
        **SMALL, **OLD, classes=4, cell="norm_gru", discount_horizon=0, kl=KLLoss("balanced", 0.8, 0.2, 0.0, "mean")
    ),
    1: RSSMWorldModelConfig(
        **SMALL, **OLD, classes=0, cell="gru", predict_continue=False, discount_horizon=0,
        kl=KLLoss("elbo", free_nats=3.0, free_nats_over="mean"),
    ),
}  # fmt: skip


def dreamer(version: int, kind: str, observation: tuple[int, ...] = (5,)) -> Dreamer:
    spaces = EnvSpaces(ObservationSpace.of_shape(observation), ActionSpace(kind, 2))
    net: dict[str, Any] = {"width": 12, "layers": 1}
    old = {**net, "norm": "none", "activation": "elu"}
    shape: dict[str, Any] = {"batch_size": 3, "batch_length": 6}
    settings = WORLDS[version]
    if len(observation) == 3:
        settings = RSSMWorldModelConfig(**SMALL, classes=4, blocks=2, depth=4, mults=(1, 2))
    if version == 3:
        return Dreamer(
            spaces,
            settings,
            ActorConfig(**net),
            CriticConfig(**net),
            DreamerOptimizerConfig(lr=1e-2, warmup=0),
            DreamerImaginationConfig(horizon=4),
            **shape,
        )
    through = ActorConfig(
        "dynamics" if kind == "continuous" else "reinforce", continuous_distribution="tanh_normal", **old
    )
    slow: dict[str, Any] = (
        {"target_network": "target", "target_rate": 1.0, "target_every": 2}
        if version == 2
        else {"target_network": "none"}
    )
    imagination = DreamerImaginationConfig(horizon=4, discount=0.99, normalize_returns=False)
    plain: dict[str, Any] = {"replay_critic_scale": 0.0, "store_latents": False}
    separate = DreamerOptimizerConfig(1e-2, 1e-2, 1e-2, clip=100)
    critic = CriticConfig("normal", **slow, **old)
    return Dreamer(spaces, settings, through, critic, separate, imagination, **plain, **shape)


def planet(kind: str) -> PlaNet:
    settings = RSSMWorldModelConfig(
        deter=32, hidden=32, stoch=4, classes=0, cell="gru", prior_layers=1, norm="none", activation="relu", units=32,
        vector_layers=1, symlog=False, reconstruction_loss="normal", reward_distribution="normal", reward_layers=1,
        predict_continue=False, discount_horizon=0,
        kl=KLLoss("elbo", free_nats=1.0),
    )  # fmt: skip
    planner = CEM(
        horizon=3, samples=64, elites=8, iterations=3, keep_elites=0, selection="mean", init_std=1.0, noise_exponent=0.0
    )
    return PlaNet(
        EnvSpaces(ObservationSpace.of_shape((2,)), ActionSpace(kind, 2)),
        settings,
        planner,
        lr=3e-3,
        batch_size=4,
        batch_length=6,
    )


def tdmpc2(observation: tuple[int, ...] = (3,), **changes: Any) -> TDMPC2:
    networks = TDMPC2NetworkConfig(encoder_width=16, latent_size=16, width=16, num_q=3, image_channels=4)
    distributions = TDMPC2DistributionConfig(num_bins=21, symlog_limit=5.0)
    planning = TDMPC2PlannerConfig(horizon=3, samples=12, elites=4, proposals=3, iterations=2)
    made = TDMPC2(
        EnvSpaces(ObservationSpace.of_shape(observation), ActionSpace("continuous", 2)),
        **{
            "episode_length": 100, "networks": networks, "distributions": distributions, "planning": planning,
            "batch_size": 6,
            **changes,
        },
    )  # fmt: skip
    randomize(made)
    return made


def muzero(
    observation: tuple[int, ...] = (3,), network: Mapping[str, int] | None = None, **changes: Any
) -> MuZeroAgent:
    sizes = {"width": 16, "hidden": 16, "support_limit": 8, "prefix_hidden": 8, "projection_size": 8}
    actions = 3 if len(observation) == 3 else 2
    made = MuZeroAgent(
        EnvSpaces(ObservationSpace.of_shape(observation), ActionSpace("discrete", actions)),
        **{
            "search": GumbelMuZeroSearch(4),
            "network": MuZeroNetworkConfig(**sizes, **network or {}),
            "batch_size": 6,
            **changes,
        },
    )
    randomize(made.network)
    return made


AGENTS: dict[str, Callable[[], Agent]] = {
    **{
        f"dreamer_v{version}_{kind}": (lambda version=version, kind=kind: dreamer(version, kind))
        for version in (1, 2, 3)
        for kind in ("discrete", "continuous")
    },
    "dreamer_v3_pictures": lambda: dreamer(3, "discrete", (16, 16, 3)),
    "planet_discrete": lambda: planet("discrete"),
    "planet_continuous": lambda: planet("continuous"),
    "tdmpc2": tdmpc2,
    "tdmpc2_episodic_frames": lambda: tdmpc2(num_stacked_frames=3, episodic=True),
    "tdmpc2_pictures": lambda: tdmpc2((40, 40, 3), num_stacked_frames=2),
    "muzero_gumbel": muzero,
    "muzero_puct_reanalyse": lambda: muzero(search=PUCTSearch(6), targets=MuZeroTargetConfig(reanalyze_fraction=0.5)),
    "muzero_prefix": lambda: muzero(
        network={"value_prefix_horizon": 2},
        targets=MuZeroTargetConfig(unroll_steps=4, td_steps=2, discount=0.9, bootstrap_from_network=True),
    ),
    "muzero_pictures": lambda: muzero((32, 32, 3), network={"num_stacked_frames": 3}),
}
