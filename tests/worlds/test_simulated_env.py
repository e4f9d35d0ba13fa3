"""Learned worlds as batched environments: their time steps, time limits, and exact resumption."""

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import diffusion_world, genie

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.worlds.bundle import save_simulator
from vwm.worlds.simulated_env import SimulatedBatchedEnv, SimulatedEnvSpec


@pytest.fixture
def recording(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "data" / "shard-000000.tar") as writer:
        for key, length in (("a", 9), ("b", 12)):
            writer.write(key, Episode(rng.integers(256, size=(length, 8, 8, 3), dtype=np.uint8)))
    return tmp_path / "data"


def starts(simulator, count: int = 3) -> torch.Tensor:
    height, width = simulator.spec.context.image_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 2, height, width, 3), generator=generator, dtype=torch.uint8)


def open_envs(seed: int = 0, observe: str = "frame") -> SimulatedBatchedEnv:
    simulator = genie()
    return SimulatedBatchedEnv(simulator, 2, seed, starts(simulator), time_limit=3, observe=observe)


def test_time_steps_equal_those_of_the_simulator() -> None:
    envs = open_envs()
    time_step = envs.reset()
    assert time_step.is_first.all() and time_step.observation.dtype == torch.uint8
    action = torch.tensor([1, 0])
    state = envs.worlds.current.state
    _, output = envs.worlds.simulator.step(state, action)
    after = envs.step(action)
    assert torch.equal(after.observation, output.frame) and torch.equal(after.reward, output.reward)
    assert not after.is_first.any()


def test_a_time_limit_truncates_and_the_next_episode_begins() -> None:
    envs = open_envs()
    envs.reset()
    time_steps = [envs.step(torch.zeros(2, dtype=torch.int64)) for _ in range(4)]
    assert [bool(m.is_last.all()) for m in time_steps] == [False, False, True, False]
    assert not any(m.is_terminal.any() for m in time_steps)
    assert time_steps[3].is_first.all() and (time_steps[3].reward == 0).all()


@pytest.mark.parametrize("observe", ["frame", "latent"])
def test_a_restored_state_continues_exactly(observe: str) -> None:
    envs, restored = open_envs(observe=observe), open_envs(observe=observe)
    assert envs.spaces.observation.is_image == (observe == "frame")
    envs.reset()
    actions = torch.randint(4, (9, 2), generator=torch.Generator().manual_seed(0))
    for action in actions[:4]:
        time_step = envs.step(action)
    restored_time_step = restored.load_state_dict(envs.state_dict())
    for action in actions[4:]:
        assert all(torch.equal(a, b) for a, b in zip(time_step, restored_time_step, strict=True))
        time_step, restored_time_step = envs.step(action), restored.step(action)


def test_different_seeds_give_different_observations() -> None:
    first, second = open_envs(0).reset(), open_envs(1).reset()
    assert not torch.equal(first.observation, second.observation)


def test_a_bundle_is_an_environment(tmp_path, recording) -> None:
    simulator = diffusion_world()
    save_simulator(simulator, tmp_path / "world")
    spec = SimulatedEnvSpec(tmp_path / "world", data=str(recording), contexts=5, time_limit=2)
    envs = spec.open(2, seed=0)
    assert len(envs.worlds.starts) == 5
    time_step = envs.reset()
    assert tuple(time_step.observation.shape) == (2, *simulator.spec.context.image_size, 3)
    assert envs.step(torch.zeros(2, dtype=torch.int64)).is_last.tolist() == [False, False]


def test_the_uncertainty_penalty_is_subtracted_from_rewards(tmp_path) -> None:
    simulator = diffusion_world(outcomes=True)
    simulator.starts = starts(simulator)
    save_simulator(simulator, tmp_path / "world")
    with torch.no_grad():
        for weight in simulator.dynamics.parameters():
            weight.add_(0.1)
    save_simulator(simulator, tmp_path / "other")
    action = torch.zeros(2, dtype=torch.int64)
    rewards = []
    for penalty in (0.0, 3.0):
        envs = SimulatedEnvSpec(
            tmp_path / "world", ensemble_bundles=(tmp_path / "other",), uncertainty_penalty=penalty
        ).open(2, seed=0)
        envs.reset()
        rewards.append(envs.step(action).reward)
        uncertainty = envs.worlds.current.state.uncertainty
    assert (uncertainty > 0).all() and torch.allclose(rewards[1], rewards[0] - 3 * uncertainty)


def test_rewarded_contexts_require_data_and_a_time_limit(recording, tmp_path) -> None:
    save_simulator(genie(), tmp_path / "world")
    for data, limit in ((str(recording), None), (None, 8)):
        with pytest.raises(ValueError, match=r"rewarded_fraction=0\.5 requires rewards of data within the time limit"):
            SimulatedEnvSpec(tmp_path / "world", data, rewarded_fraction=0.5, time_limit=limit).open(1, seed=0)
