"""The Stable-Baselines3 interface: equality with its own vectorizer, and PPO in a video world."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from count_world import CountWorld
from factories import diffusion_world
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from vwm.core.simulator import Simulator
from vwm.worlds.gymnasium_env import SimulatorEnv, SimulatorVectorEnv
from vwm.worlds.stable_baselines import StableBaselinesVecEnv


@pytest.mark.parametrize("world", ["cart pole", "ours"])
def test_it_equals_a_dummy_vec_env_of_single_worlds(world: str) -> None:
    def make_single() -> gymnasium.Env[Any, Any]:
        if world == "ours":
            return SimulatorEnv(CountWorld(), max_episode_steps=4, render_mode="rgb_array")
        return gymnasium.make("CartPole-v1", max_episode_steps=15)

    dummy_envs = DummyVecEnv([make_single] * 3)
    if world == "ours":
        envs: Any = SimulatorVectorEnv(CountWorld(), 3, None, 4, AutoresetMode.SAME_STEP, "rgb_array")
    else:
        envs = SyncVectorEnv([make_single] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    sb3_envs = StableBaselinesVecEnv(envs)
    assert (
        sb3_envs.observation_space == dummy_envs.observation_space and sb3_envs.action_space == dummy_envs.action_space
    )
    assert sb3_envs.render_mode == dummy_envs.render_mode
    options = {"start": 2} if world == "ours" else {}
    for each in (sb3_envs, dummy_envs):
        each.seed(5), each.set_options(options)
    assert data_equivalence(sb3_envs.reset(), dummy_envs.reset(), exact=True)
    assert sb3_envs.reset_infos == dummy_envs.reset_infos
    episode_ends = 0
    for actions in np.random.default_rng(0).integers(0, 2, (40, 3)):
        actual, expected = sb3_envs.step(actions), dummy_envs.step(actions)
        assert data_equivalence(actual, expected, exact=True), (actual[3], expected[3])
        assert sb3_envs.reset_infos == dummy_envs.reset_infos
        episode_ends += actual[2].sum()
    assert episode_ends > 3
    if world == "ours":
        assert (sb3_envs.render() == dummy_envs.render()).all()
    assert data_equivalence(sb3_envs.reset(), dummy_envs.reset(), exact=True)  # without a seed the generators continue
    sb3_envs.close(), dummy_envs.close()


def test_rejects_other_autoreset_modes_and_mixed_options() -> None:
    with pytest.raises(ValueError, match="autoreset_mode='SameStep'"):
        StableBaselinesVecEnv(SimulatorVectorEnv(CountWorld(), 2))
    envs = StableBaselinesVecEnv(SimulatorVectorEnv(CountWorld(), 2, autoreset_mode="SameStep"))
    envs.set_options([{"start": 1}, {"start": 2}])
    with pytest.raises(ValueError, match="same options"):
        envs.reset()


def make_large_world() -> Simulator:
    """A diffusion world of 36x36 pixels, the smallest image that NatureCNN takes, with rewards and terminations."""
    from vwm.models.dit.simulator import DiTSimulator
    from vwm.nn.outcome_heads import RewardTerminationHeads
    from vwm.tokenizers.pixel_tokenizer import PixelTokenizer

    small = diffusion_world(outcomes=True)
    tokenizer = PixelTokenizer((36, 36))
    torch.manual_seed(0)
    dynamics = type(small.dynamics)(
        **{**small.dynamics.config, "grid": tokenizer.grid, "channels": tokenizer.channels, "patch_size": 12}
    )
    starts = torch.randint(0, 256, (3, 2, 36, 36, 3), dtype=torch.uint8)
    assert isinstance(small.outcomes, RewardTerminationHeads)
    return DiTSimulator(
        tokenizer,
        dynamics,
        small.outcomes,
        small.spec.actions,
        sampling=small.sampling,
        context_frames=2,
        starts=starts,
    )


@pytest.mark.parametrize("batched", [False, True])
def test_ppo_trains_in_a_video_world(batched: bool) -> None:
    world = make_large_world()
    env: Any = SimulatorEnv(world, max_episode_steps=8)
    if batched:
        envs = SimulatorVectorEnv(world, 2, max_episode_steps=8, autoreset_mode="SameStep")
        env = VecMonitor(StableBaselinesVecEnv(envs))
    ppo = PPO("CnnPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    before = {name: weight.clone() for name, weight in ppo.policy.state_dict().items()}
    ppo.learn(32)
    assert ppo.num_timesteps == 32 and len(ppo.ep_info_buffer or ()) >= 2
    changed = [name for name, weight in ppo.policy.state_dict().items() if not torch.equal(weight, before[name])]
    assert any("features_extractor" in name for name in changed)
    assert all(weight.isfinite().all() for weight in ppo.policy.state_dict().values())


def test_ppo_trains_in_latents() -> None:
    world = diffusion_world(outcomes=True)
    envs = SimulatorVectorEnv(world, 2, max_episode_steps=8, autoreset_mode="SameStep", observe="latent")
    ppo = PPO("MlpPolicy", StableBaselinesVecEnv(envs), n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    assert ppo.learn(32).num_timesteps == 32
