"""Worlds of every kind pass the checkers of Gymnasium, Stable-Baselines3 and TorchRL, and ours."""

from __future__ import annotations

from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from worlds.test_contract import SIMULATORS, contexts

from vwm.worlds.gymnasium_env import SimulatorEnv, SimulatorVectorEnv
from vwm.worlds.vector_env_conformance import check_vector_env

WORLDS = (
    *("dit-composite-actions-guided-by-part", "dit-4-frames-a-step-and-outcomes"),
    *("genie-vq", "genie-continuous-latent"),
    *("mdn-rnn", "rssm-gaussian-continuous-actions", "rssm-of-vectors", "jepa", "jepa-latents-alone", "consistency"),
    *("muzero-of-vectors", "ensemble-that-follows-the-first"),
)
"""Of each kind of actions, observations and outcomes; the environments are the same code in all."""


@pytest.fixture(params=WORLDS, scope="module")
def world(request: pytest.FixtureRequest) -> Any:
    return SIMULATORS[request.param]()


def observation_modes(world: Any) -> list[str]:
    return ["latent"] if world.spec.observation.is_latent else ["frame", "latent"]


@pytest.mark.filterwarnings("ignore:.*A Box observation space m..imum value is -?infinity")  # latents have no bounds
def test_it_passes_the_checkers_of_gymnasium_and_stable_baselines(world: Any) -> None:
    for observe in observation_modes(world):
        env = SimulatorEnv(world, contexts(world), max_episode_steps=5, observe=observe)
        check_env(env, skip_render_check=True)  # rendering is checked in test_gymnasium_env.py, from a bundle
        sb3_check_env(env, warn=False)  # it would warn about images below 36 pixels


def test_it_passes_our_vector_env_checker(world: Any) -> None:
    observe = observation_modes(world)[0]

    def make(num_envs: int, autoreset_mode: Any, max_episode_steps: int) -> SimulatorVectorEnv:
        return SimulatorVectorEnv(world, num_envs, contexts(world), max_episode_steps, autoreset_mode, observe=observe)

    # In a batch of another size a gray level may round differently.
    tolerance = 1e-3 if world.spec.context.is_vector or observe == "latent" else 1.0
    check_vector_env(make, num_envs=2, max_episode_steps=2, steps=6, tolerance=tolerance)


def test_it_passes_the_torchrl_checker(world: Any) -> None:
    pytest.importorskip("torchrl")
    from torchrl.envs.utils import check_env_specs

    from vwm.worlds.torchrl_env import SimulatorTorchRLEnv

    for observe in observation_modes(world):
        env = SimulatorTorchRLEnv(world, 2, contexts(world), max_episode_steps=2, observe=observe)
        check_env_specs(env, seed=0)
        check_env_specs(env, break_when_any_done=False)
