"""Equal ids, options and seeds give equal frames from a single environment, a recording and a batch."""

from typing import Any

import numpy as np
import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.recording_envs import ShardAssignment, make_recording_env
from vwm.envs.wrapped_env import WrappedEnv

ENVS: dict[str, dict[str, Any]] = {
    "vwm/TwoRooms-v0": {"random_wall": True},
    "vwm/Crafter-v0": {},
    "vwm/World-v0": {"bundle": "two_rooms", "device": "cpu"},
    "CartPole-v1": {},
}


@pytest.mark.parametrize("env_id", ENVS)
def test_single_recording_and_batched_environments_give_equal_frames(env_id: str) -> None:
    if "Crafter" in env_id:
        pytest.importorskip("crafter", reason="Crafter is not installed")
    options, size, repeat = ENVS[env_id], 32, 2
    spec = GymnasiumEnvSpec(env_id, pixels=True, size=size, action_repeat=repeat, options=options)
    batch = spec.open(2, seed=4)
    seeds = [int(np.random.SeedSequence([4, copy, 0]).generate_state(1)[0]) % 2**31 for copy in range(2)]
    singles = [WrappedEnv(env_id, options, size, repeat, images=True) for _ in seeds]
    recorded = [make_recording_env(env_id, ShardAssignment(0, 1, seed), size, repeat, options) for seed in seeds]
    time_step = batch.reset()
    recorded_steps = [env.reset() for env in recorded]
    for env, seed in zip(singles, seeds, strict=True):
        env.reset(seed)
    space = batch.spaces.actions
    assert all(env.spaces == batch.spaces for env in recorded)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for copy in range(2):
            frame = time_step.observation[copy]
            assert torch.equal(recorded_steps[copy].observation[0], frame)
            np.testing.assert_array_equal(singles[copy].observe(), frame)
        if space.is_discrete:
            action = torch.randint(space.size, (2,), generator=generator)
        else:
            action = torch.rand(2, space.size, generator=generator) * 2 - 1
        time_step = batch.step(action)
        recorded_steps = [env.step(action[copy][None]) for copy, env in enumerate(recorded)]
        for copy, env in enumerate(singles):
            outcome = env.step(action[copy].numpy())
            assert outcome.reward == time_step.reward[copy] == recorded_steps[copy].reward[0]
            assert not time_step.is_last[copy] and not recorded_steps[copy].is_last[0]
    for env in (batch, *singles, *recorded):
        env.close()
