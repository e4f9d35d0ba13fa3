"""Agents in environments of composite actions: as continuous actions, or as one discrete action per combination."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.models.rssm.world_model import RSSMWorldModelConfig
from vwm.planning.cem import CEM
from vwm.planning.gumbel_search import GumbelMuZeroSearch
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.dreamer import Dreamer, DreamerImaginationConfig
from vwm.rl.algorithms.muzero import MuZeroAgent, MuZeroNetworkConfig
from vwm.rl.algorithms.muzero_targets import MuZeroTargetConfig
from vwm.rl.algorithms.planet import PLANET_WORLD_SETTINGS, PlaNet
from vwm.rl.algorithms.tdmpc2 import TDMPC2, TDMPC2NetworkConfig
from vwm.rl.algorithms.tdmpc2_planner import TDMPC2PlannerConfig
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.rl.online_learning import OnlineLearning


class Piano(gymnasium.Env[Any, Any]):
    """The reward is 1 where a pedal is chosen and exactly the second of two keys is held."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Dict(keys=spaces.MultiBinary(2), pedal=spaces.Discrete(3))
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's declaration)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.played: list[tuple[int, ...]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.played.append((*action["keys"].tolist(), int(action["pedal"])))
        reward = float(action["pedal"] == 2 and action["keys"].tolist() == [0, 1])
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), reward, False, False, {}


gymnasium.register("Piano-v0", Piano, max_episode_steps=6)


def test_enumerated_actions_reach_the_environment() -> None:
    envs = GymnasiumEnvSpec("Piano-v0", enumerate_actions=True).open(1, seed=0)
    assert envs.spaces.actions.size == 12 and envs.spaces.actions.names[5:8] == ("1, 2", "0, 0", "0, 1")
    envs.reset()
    rewards = [float(envs.step(torch.tensor([action])).reward) for action in range(6)]
    assert envs.copies[0].env.env.unwrapped.played == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2)]
    assert rewards == [0, 0, 0, 0, 0, 1]
    with pytest.raises(ValueError, match="cannot be enumerated, because pointer is continuous"):
        GymnasiumEnvSpec("vwm/Lamp-v0", enumerate_actions=True).open(1, seed=0)


WORLD = RSSMWorldModelConfig(deter=16, hidden=12, stoch=4, units=12, classes=4, blocks=2, depth=2)
NARROW = {"width": 12, "layers": 1}
AGENTS = {
    "dreamer": lambda s: Dreamer(
        s, WORLD, ActorConfig(**NARROW), CriticConfig(**NARROW), imagination=DreamerImaginationConfig(horizon=3),
        batch_size=2, batch_length=4,
    ),
    "planet": lambda s: PlaNet(
        s, PLANET_WORLD_SETTINGS, CEM(horizon=2, samples=4, elites=2, iterations=1), batch_size=2, batch_length=4
    ),
    "tdmpc2": lambda s: TDMPC2(
        s, 6, networks=TDMPC2NetworkConfig(encoder_width=16, latent_size=16, width=16, num_q=2, image_channels=4),
        planning=TDMPC2PlannerConfig(horizon=2, samples=4, elites=2, proposals=1, iterations=1), batch_size=2,
    ),
    "muzero": lambda s: MuZeroAgent(
        s, GumbelMuZeroSearch(4), MuZeroNetworkConfig(width=16, hidden=16, support_limit=8, prefix_hidden=8),
        MuZeroTargetConfig(unroll_steps=2, td_steps=2), batch_size=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("agent", "env"),
    [
        ("dreamer", GymnasiumEnvSpec("vwm/Lamp-v0", time_limit=6)),
        ("planet", GymnasiumEnvSpec("vwm/Lamp-v0", time_limit=6)),
        ("tdmpc2", GymnasiumEnvSpec("vwm/Lamp-v0", time_limit=6)),
        ("muzero", GymnasiumEnvSpec("Piano-v0", enumerate_actions=True)),
    ],
    ids=list(AGENTS),
)
def test_agents_act_and_learn(agent: str, env: GymnasiumEnvSpec, tmp_path: Path, no_curves: None) -> None:
    algorithm = OnlineLearning(
        env, AGENTS[agent], num_envs=2, prefill=24, updates_per_decision=0.25, replay_capacity=64
    )
    training = AgentTraining(tmp_path, algorithm, 32, evaluation=EvaluationConfig(32, 1, video=False), device="cpu")
    training.run()
    assert algorithm.progress >= 32 and np.isfinite(algorithm.policy.simulator().spec.actions.size)


def test_muzero_names_the_remedy_for_composite_actions() -> None:
    spaces = GymnasiumEnvSpec("vwm/Lamp-v0").open(1, seed=0).spaces
    with pytest.raises(ValueError, match=r"MuZero requires.*GymnasiumEnvSpec's enumerate_actions=true"):
        AGENTS["muzero"](spaces)
