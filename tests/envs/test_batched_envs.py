"""Batched environments: reward alignment, episode boundaries, and exact resumption from a saved state."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.rl.algorithms.encoded_env import EncodedEnvSpec


def test_time_steps_equal_those_of_gymnasium_cartpole() -> None:
    import gymnasium

    envs = GymnasiumEnvSpec("CartPole-v1").open(1, seed=5)
    time_step = envs.reset()
    assert time_step.is_first.item() and time_step.reward.item() == 0 and envs.spaces.observation.shape == (4,)
    env = gymnasium.make("CartPole-v1")
    seed = np.random.SeedSequence([5, 0, 0]).generate_state(1)[0]
    observation, _ = env.reset(seed=int(seed) % 2**31)
    terminated = False
    while not terminated:
        assert np.array_equal(time_step.observation[0].numpy(), observation)
        assert not time_step.is_last.item()
        observation, reward, terminated, _, _ = env.step(1)
        time_step = envs.step(torch.tensor([1]))
        assert time_step.reward.item() == reward
    assert np.array_equal(time_step.observation[0].numpy(), observation)
    assert time_step.is_last.item() and time_step.is_terminal.item()
    time_step = envs.step(torch.tensor([0]))
    assert time_step.is_first.item() and not time_step.is_last.item() and time_step.reward.item() == 0


def test_str_of_a_spec_lists_its_non_default_settings() -> None:
    spec = GymnasiumEnvSpec("CartPole-v1", time_limit=5)
    assert str(spec) == "GymnasiumEnvSpec(env=CartPole-v1, time_limit=5)"
    encoded = EncodedEnvSpec(spec, Path("world"), observe="latent")
    assert str(encoded) == f"EncodedEnvSpec(env={spec}, bundle=world, observe=latent)"


def test_a_time_limit_truncates_without_terminating() -> None:
    envs = GymnasiumEnvSpec("Pendulum-v1", action_repeat=2, time_limit=3).open(2, seed=0)
    envs.reset()
    time_steps = [envs.step(torch.zeros(2, 1)) for _ in range(4)]
    assert [m.is_last.tolist() for m in time_steps] == [[False, False], [False, False], [True, True], [False, False]]
    assert not any(m.is_terminal.any() for m in time_steps)
    assert time_steps[3].is_first.all()
    # Each copy has its own random numbers.
    assert not torch.equal(time_steps[0].observation[0], time_steps[0].observation[1])


def test_action_repeat_sums_rewards() -> None:
    once, twice = (GymnasiumEnvSpec("Pendulum-v1", action_repeat=n).open(1, seed=1) for n in (1, 2))
    assert torch.equal(once.reset().observation, twice.reset().observation)
    action = torch.tensor([[0.5]])
    first, second = once.step(action), once.step(action)
    repeated = twice.step(action)
    assert torch.equal(repeated.observation, second.observation)
    assert repeated.reward.item() == pytest.approx(first.reward.item() + second.reward.item(), rel=1e-6)


@pytest.mark.parametrize(
    "spec", [GymnasiumEnvSpec("CartPole-v1"), GymnasiumEnvSpec("CartPole-v1", pixels=True, size=16)]
)
def test_a_restored_state_continues_exactly(spec: GymnasiumEnvSpec) -> None:
    envs, restored = spec.open(2, seed=0), spec.open(2, seed=0)
    envs.reset()
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(2, (60, 2), generator=generator)
    for action in actions[:40]:
        time_step = envs.step(action)
    restored_time_step = restored.load_state_dict(envs.state_dict())
    for action in actions[40:]:
        assert all(torch.equal(a, b) for a, b in zip(time_step, restored_time_step, strict=True))
        time_step, restored_time_step = envs.step(action), restored.step(action)
    envs.close()
    restored.close()


def test_pixel_observations_are_rendered_and_resized() -> None:
    envs = GymnasiumEnvSpec("CartPole-v1", pixels=True, size=32).open(1, seed=0)
    time_step = envs.reset()
    assert time_step.observation.dtype == torch.uint8 and tuple(time_step.observation.shape) == (1, 32, 32, 3)
    assert time_step.observation.float().std() > 1
    image = envs.render()
    assert image is not None and image.shape[-1] == 3 and image.shape[0] > 32
    envs.close()


def test_continuous_actions_are_scaled_to_the_range_of_the_environment() -> None:
    envs = GymnasiumEnvSpec("Pendulum-v1").open(1, seed=0)
    assert envs.spaces.actions.kind == "continuous" and envs.spaces.actions.shape == (1,)
    copy = envs.copies[0]
    assert copy.env.actions.denormalize(np.array([1.0], np.float32)).item() == 2.0


def test_rejects_unknown_environments_and_invalid_counts() -> None:
    with pytest.raises(ValueError, match="NoSuchGame"):
        GymnasiumEnvSpec("NoSuchGame-v0").open(1, 0)
    with pytest.raises(ValueError, match="action_repeat must be 1 or more, got 0"):
        GymnasiumEnvSpec("CartPole-v1", action_repeat=0)
    with pytest.raises(ValueError, match="1 environment or more, got 0"):
        GymnasiumEnvSpec("CartPole-v1").open(0, 0)
